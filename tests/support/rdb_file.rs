//! RDB files made by hand, for what no server writes.

/// A file of this magic (`REDIS0009`, `VALKEY080`) with these records, all in database 0, and its checksum.
pub fn rdb(magic: &str, records: &[&[u8]]) -> Vec<u8> {
    let mut file = [magic.as_bytes(), b"\xfe\x00", &records.concat(), b"\xff"].concat();
    file.extend(shakedeck::rdb::crc64(&file).to_le_bytes());
    file
}

/// A length of 32 bits.
pub fn length(length: usize) -> Vec<u8> {
    [&[0x80][..], &u32::try_from(length).unwrap().to_be_bytes()].concat()
}

/// A string as it is.
pub fn string(text: &[u8]) -> Vec<u8> {
    [&length(text.len()), text].concat()
}

/// A key with a value of several elements, each as it lies in the file.
pub fn key(type_byte: u8, name: &str, elements: &[Vec<u8>]) -> Vec<u8> {
    [vec![type_byte], string(name.as_bytes()), length(elements.len()), elements.concat()].concat()
}

/// The same with a time of expiry (Unix ms).
pub fn expiring(at_ms: i64, key: &[u8]) -> Vec<u8> {
    [b"\xfc", &at_ms.to_le_bytes()[..], key].concat()
}
