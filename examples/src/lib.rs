//! Runnable examples of machinist.
