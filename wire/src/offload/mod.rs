//! Segmentation of super-packets, coalescing of segments, and the Internet checksum.
