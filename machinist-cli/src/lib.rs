//! The machinist program, and the library that puts its commands into your own binary.
