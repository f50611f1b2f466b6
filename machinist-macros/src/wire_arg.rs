//! `#[derive(WireArg)]`: the wire form of a type that serde can write and read.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Attribute, DeriveInput, Error, Path, Result};

use crate::options::default_path;

pub(super) fn expand(mut input: DeriveInput) -> Result<TokenStream> {
    let machinist = machinist_path(&input.attrs)?;
    if let Some(lifetime) = input.generics.lifetimes().next() {
        return Err(Error::new_spanned(
            lifetime,
            "a reference cannot be an argument: own the value, `String` for `&str`",
        ));
    }
    let ident = &input.ident;
    if !input.generics.params.is_empty() {
        let bounds = input.generics.make_where_clause();
        bounds.predicates.push(syn::parse_quote!(Self: ::core::marker::Send + 'static));
        bounds.predicates.push(syn::parse_quote!(#machinist::Json<Self>: #machinist::args::WireArg));
    }
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #generics #machinist::args::WireArg for #ident #arguments #bounds {
            const TYPE: &'static str = "json";

            fn into_wire(self) -> ::core::result::Result<#machinist::args::WireValue, #machinist::args::Misfit> {
                #machinist::args::WireArg::into_wire(#machinist::Json(self))
            }

            fn from_wire(value: #machinist::args::WireValue) -> ::core::result::Result<Self, #machinist::args::Misfit> {
                let read: #machinist::Json<Self> = #machinist::args::WireArg::from_wire(value)?;
                ::core::result::Result::Ok(read.0)
            }
        }
    })
}

/// Returns the path of the crate machinist: `#[machinist(crate = path)]`, or the usual one.
pub(super) fn machinist_path(attributes: &[Attribute]) -> Result<Path> {
    let mut path = None;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("machinist")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("crate") {
                return Err(meta.error("the only option is `crate = path`"));
            }
            path = Some(meta.value()?.call(Path::parse_mod_style)?);
            Ok(())
        })?;
    }
    Ok(path.unwrap_or_else(default_path))
}
