//! Numbers, times and untrusted text for screens and lines; one style everywhere. (filled by the ui branch)
