//! The suites that define what a broker and a backend of machinist are.
