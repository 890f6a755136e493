//! stub
use super::reader::Source;
use super::{Dialect, Fault, RdbError};
pub enum Element<'a> {
    X(&'a [u8]),
}
pub(crate) fn visits(_t: u8, _d: Dialect) -> bool {
    true
}
pub(crate) fn visit<S: Source>(
    src: &mut S,
    t: u8,
    d: Dialect,
    _sink: &mut dyn FnMut(Element<'_>) -> Result<(), RdbError>,
) -> Result<(), Fault> {
    super::walk::skip_value(src, t, d, &mut None)
}
