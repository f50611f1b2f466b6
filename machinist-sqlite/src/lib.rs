//! Broker and result backend of machinist in one SQLite file: the embedded default.
