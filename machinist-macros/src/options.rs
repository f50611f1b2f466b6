//! Attributes of `#[task(…)]`, as they are written.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::{
    Error, Expr, Ident, LitStr, Path, Result, Token,
    ext::IdentExt,
    parse::{Parse, ParseStream},
};

use crate::duration;

/// Options whose value is a duration.
const DURATIONS: [&str; 4] = ["retry_for", "timeout", "soft_timeout", "expires_in"];
/// Options with another value.
const VALUES: [&str; 11] = [
    "queue",
    "requires",
    "retries",
    "backoff",
    "backoff_list",
    "max_postponements",
    "priority",
    "limit_key",
    "limit_cost",
    "unique",
    "unique_by",
];
/// Option without a value.
const RETRY_TIMEOUTS: &str = "retry_timeouts";
/// All that may be written.
const ALL: &str = "name, def, crate, queue, requires, retries, backoff, backoff_list, retry_for, retry_timeouts, \
                   max_postponements, timeout, soft_timeout, priority, expires_in, limit_key, limit_cost, unique, unique_by";

/// Attributes of a task.
pub(super) struct TaskAttributes {
    /// Name of the task.
    pub(super) name: Option<LitStr>,
    /// Name of the constant.
    pub(super) constant: Option<Ident>,
    /// Path of the crate machinist.
    pub(super) machinist: Path,
    /// Calls that add the options to the definition, in the order in which they are written.
    pub(super) calls: Vec<TokenStream>,
}

impl Parse for TaskAttributes {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut attributes =
            Self { name: None, constant: None, machinist: default_path(), calls: Vec::new() };
        let mut seen: Vec<String> = Vec::new();
        while !input.is_empty() {
            let key = Ident::parse_any(input)?;
            let word = key.to_string();
            if seen.contains(&word) {
                return Err(Error::new(key.span(), format!("`{word}` is set twice")));
            }
            attributes.read(&key, &word, input)?;
            seen.push(word);
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(attributes)
    }
}

impl TaskAttributes {
    fn read(&mut self, key: &Ident, word: &str, input: ParseStream<'_>) -> Result<()> {
        if word == RETRY_TIMEOUTS {
            self.calls.push(quote!(.#key()));
            return Ok(());
        }
        let known =
            ["name", "def", "crate"].contains(&word) || DURATIONS.contains(&word) || VALUES.contains(&word);
        if !known {
            return Err(Error::new(key.span(), format!("unknown option `{word}`; the options are {ALL}")));
        }
        if !input.peek(Token![=]) {
            return Err(Error::new(key.span(), format!("`{word}` needs a value: `{word} = …`")));
        }
        input.parse::<Token![=]>()?;
        match word {
            "name" => self.name = Some(input.parse()?),
            "def" => self.constant = Some(input.parse()?),
            "crate" => self.machinist = input.call(Path::parse_mod_style)?,
            _ => {
                let value: Expr = input.parse()?;
                let value =
                    if DURATIONS.contains(&word) { duration::expression(&value)? } else { quote!(#value) };
                self.calls.push(quote!(.#key(#value)));
            }
        }
        Ok(())
    }
}

/// Returns the path of the crate machinist where nothing else is said.
pub(super) fn default_path() -> Path {
    let machinist = Ident::new("machinist", Span::call_site());
    syn::parse_quote!(::#machinist)
}
