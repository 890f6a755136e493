//! Arbitrary bytes as a RDB file, held and streamed, through every consumer of the decoder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shakedeck::rdb::dump::{self, Target};
use shakedeck::rdb::export::{RespOptions, Statistics, write_json, write_resp};
use shakedeck::rdb::{Decoder, Limits, decode_value};

fuzz_target!(|bytes: &[u8]| {
    for limit in [8 << 20, 64] {
        let limits = Limits { max_value_bytes: limit, max_opaque_bytes: limit };
        let options = RespOptions { target: Target::redis(7, 0), commands_only: true, replace: true };
        let ahead = |at| Ok(&bytes[at as usize..]);
        let _ = write_json(&mut Decoder::new(bytes, limits), ahead, &mut std::io::sink());
        let _ = write_resp(&mut Decoder::new(bytes, limits), options, ahead, &mut std::io::sink());
        let _ = Statistics::collect(&mut Decoder::new(bytes, limits));
    }
    if let Ok(payload) = dump::parse_payload(bytes) {
        let _ = decode_value(payload.type_byte, payload.raw, payload.dialect);
    }
});
