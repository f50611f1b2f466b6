//! Durations as text, with the syntax of machinist.toml.

use jiff::{Span, SpanRelativeTo};
use proc_macro2::TokenStream;
use quote::quote;
use syn::{Error, Expr, ExprLit, Lit, LitStr, Result};

/// Returns the expression of a duration: text is read now, any other expression is left to the compiler.
pub(super) fn expression(value: &Expr) -> Result<TokenStream> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => literal(text),
        Expr::Lit(ExprLit { lit, .. }) => {
            Err(Error::new(lit.span(), "expected a duration: text like \"30s\", or a constant `Duration`"))
        }
        other => Ok(quote!(#other)),
    }
}

/// Returns the expression of a duration that is written as text.
pub(super) fn literal(text: &LitStr) -> Result<TokenStream> {
    let wrong = |_| {
        let text_read = text.value();
        Error::new(
            text.span(),
            format!("{text_read:?} is not a duration; write one like 20s, 500ms or 1h 30m"),
        )
    };
    let span: Span = text.value().trim().parse().map_err(wrong)?;
    let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(wrong)?;
    let duration = std::time::Duration::try_from(signed).map_err(wrong)?;
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    Ok(quote!(::core::time::Duration::new(#seconds, #nanos)))
}
