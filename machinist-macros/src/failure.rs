//! `#[derive(TaskFailure)]`: the consequence of an error, from attributes.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Attribute, Data, DeriveInput, Error, Fields, LitStr, Result, spanned::Spanned};

use crate::{duration, wire_arg::machinist_path};

/// Meaning of an attribute of an error.
enum ErrorAttribute {
    Class(TokenStream),
    /// Consequence of the only field.
    Transparent,
}

pub(super) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let machinist = machinist_path(&input.attrs)?;
    let class = quote!(#machinist::worker::ErrorClass);
    let of_type = match consequence(&input.attrs, &class)? {
        None => quote!(#class::Retry),
        Some(ErrorAttribute::Class(of_type)) => of_type,
        Some(ErrorAttribute::Transparent) => {
            return Err(Error::new(input.ident.span(), "`transparent` belongs to a variant with one field"));
        }
    };
    let body = match &input.data {
        Data::Enum(data) if data.variants.is_empty() => quote!(match *self {}),
        Data::Enum(data) => {
            let arms = data.variants.iter().map(|variant| {
                let ident = &variant.ident;
                Ok(match consequence(&variant.attrs, &class)? {
                    None => quote!(Self::#ident { .. } => #of_type),
                    Some(ErrorAttribute::Class(own)) => quote!(Self::#ident { .. } => #own),
                    Some(ErrorAttribute::Transparent) => {
                        let field = only_field(&variant.fields)?;
                        quote!(Self::#ident { #field: inner } => #machinist::worker::TaskFailure::class(inner))
                    }
                })
            });
            let arms = arms.collect::<Result<Vec<_>>>()?;
            quote!(match self { #(#arms,)* })
        }
        Data::Struct(_) => of_type,
        Data::Union(data) => {
            return Err(Error::new(data.union_token.span(), "a union cannot be an error of a task"));
        }
    };
    let ident = &input.ident;
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #generics #machinist::worker::TaskFailure for #ident #arguments #bounds {
            fn class(&self) -> #class {
                #body
            }
        }
    })
}

/// Reads `#[task_error(…)]`.
fn consequence(attributes: &[Attribute], class: &TokenStream) -> Result<Option<ErrorAttribute>> {
    let mut found = None;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("task_error")) {
        attribute.parse_nested_meta(|meta| {
            if found.is_some() {
                return Err(meta.error("an error has one consequence"));
            }
            let duration = || duration::literal(&meta.value()?.parse::<LitStr>()?);
            found = Some(if meta.path.is_ident("permanent") {
                ErrorAttribute::Class(quote!(#class::Permanent))
            } else if meta.path.is_ident("retry") {
                ErrorAttribute::Class(quote!(#class::Retry))
            } else if meta.path.is_ident("transparent") {
                ErrorAttribute::Transparent
            } else if meta.path.is_ident("retry_after") {
                let wait = duration()?;
                ErrorAttribute::Class(quote!(#class::RetryAfter(#wait)))
            } else if meta.path.is_ident("retry_in") {
                let wait = duration()?;
                ErrorAttribute::Class(quote!(#class::Postpone(#wait)))
            } else {
                return Err(meta.error(
                    "expected `permanent`, `retry`, `retry_after = \"30s\"`, `retry_in = \"30s\"` or `transparent`",
                ));
            });
            Ok(())
        })?;
    }
    Ok(found)
}

/// Returns the name of the only field of a variant.
fn only_field(fields: &Fields) -> Result<TokenStream> {
    let one = if fields.len() == 1 { fields.iter().next() } else { None };
    match one {
        Some(field) => Ok(field.ident.as_ref().map_or_else(|| quote!(0), |ident| quote!(#ident))),
        None => Err(Error::new(fields.span(), "`transparent` belongs to a variant with one field")),
    }
}
