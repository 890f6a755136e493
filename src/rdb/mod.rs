//! RDB decoding (filled by the rdb branch).
