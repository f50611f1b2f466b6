//! The programs of this crate are in `src/bin`. The library compiles and runs the snippets of the guides, with
//! `cargo test --doc -p machinist-examples`.

macro_rules! guides {
    ($($page:literal $name:ident)*) => { $(
        /// A guide whose snippets are compiled and run.
        #[cfg(doctest)]
        #[doc = include_str!(concat!("../../docs/book/", $page))]
        struct $name;
    )* };
}

guides! {
    "getting-started.md" GettingStarted
    "web.md" Web
    "errors.md" Errors
    "idempotence.md" Idempotence
    "delays.md" Delays
    "configuration.md" Configuration
}
