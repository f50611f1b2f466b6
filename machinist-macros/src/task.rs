//! `#[task]`: the definition of a task from its function.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::{
    Error, FnArg, GenericArgument, GenericParam, ItemFn, LitStr, PathArguments, Result, ReturnType, Type,
    ext::IdentExt, spanned::Spanned,
};

use crate::options::TaskAttributes;

/// Maximum number of arguments of a task.
const MAX_ARGUMENTS: usize = 8;

pub(super) fn expand(attributes: TaskAttributes, mut function: ItemFn) -> Result<TokenStream> {
    let TaskAttributes { name, constant, machinist, calls } = attributes;
    if let Some(parameter) =
        function.sig.generics.params.iter().find(|one| !matches!(one, GenericParam::Lifetime(_)))
    {
        return Err(Error::new(
            parameter.span(),
            "a task's function is not generic: a definition has one list of argument types",
        ));
    }
    let arguments = arguments(&mut function)?;
    let ReturnType::Type(_, returned) = &function.sig.output else {
        return Err(Error::new(
            function.sig.ident.span(),
            "a task's function returns `Result<R, E>`; `R` is `()` where the task has no result",
        ));
    };
    if let Type::ImplTrait(opaque) = &**returned {
        return Err(Error::new(opaque.span(), "write an `async fn` that returns `Result<R, E>`"));
    }
    let ident = &function.sig.ident;
    let plain = ident.unraw().to_string();
    let name = name.unwrap_or_else(|| LitStr::new(&plain, ident.span()));
    let constant = constant.unwrap_or_else(|| format_ident!("{}", plain.to_uppercase(), span = ident.span()));
    let visibility = &function.vis;
    let declared = match &arguments[..] {
        [] => quote!(()),
        [one] => quote!(#one),
        several => quote!((#(#several),*)),
    };
    // The bound is checked where the type is written, so that the compiler points there.
    let checks = arguments.iter().map(
        |argument| quote_spanned!(argument.span()=> #machinist::handler::argument_of_task::<#argument>();),
    );
    let result = match continued(returned) {
        Some(result) => quote!(#result),
        None => quote_spanned!(returned.span()=> <#returned as #machinist::handler::HandlerResult>::Value),
    };
    let docs = format!("Definition of the task `{}`.", name.value());
    Ok(quote! {
        #function

        #[doc = #docs]
        #[allow(clippy::type_complexity)]
        #visibility const #constant: #machinist::TaskDef<#declared, #result> = {
            #(#checks)*
            #machinist::TaskDef::new(#name)#(#calls)*
        };
    })
}

/// Returns `T` of `Result<Continue<T>, E>`: the result of a task that another one may replace.
fn continued(returned: &Type) -> Option<&Type> {
    first_argument(returned, "Result").and_then(|value| first_argument(value, "Continue"))
}

/// Returns the first generic argument of a type with this name.
fn first_argument<'a>(ty: &'a Type, name: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == name)?;
    let PathArguments::AngleBracketed(generics) = &last.arguments else { return None };
    match generics.args.first()? {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    }
}

/// Returns the types of the parameters that are arguments. Takes the marks of the others away.
fn arguments(function: &mut ItemFn) -> Result<Vec<Type>> {
    let mut arguments = Vec::new();
    for parameter in &mut function.sig.inputs {
        let parameter = match parameter {
            FnArg::Typed(parameter) => parameter,
            FnArg::Receiver(receiver) => {
                return Err(Error::new(
                    receiver.span(),
                    "a task's function has no `self`: take shared values as `State<T>`",
                ));
            }
        };
        let marks = parameter.attrs.len();
        parameter.attrs.retain(|attribute| !attribute.path().is_ident("extract"));
        if marks != parameter.attrs.len() || is_extractor(&parameter.ty) {
            continue;
        }
        if let Type::Reference(reference) = &*parameter.ty {
            return Err(Error::new(
                reference.span(),
                "a reference cannot be an argument: take the value itself, `String` for `&str`",
            ));
        }
        arguments.push((*parameter.ty).clone());
    }
    match arguments.get(MAX_ARGUMENTS) {
        None => Ok(arguments),
        Some(ninth) => Err(Error::new(
            ninth.span(),
            format!(
                "a task has at most {MAX_ARGUMENTS} arguments: put them into a struct with `#[derive(WireArg)]`"
            ),
        )),
    }
}

/// Returns `true` for the types of the crate machinist that are filled by the worker.
fn is_extractor(ty: &Type) -> bool {
    let Type::Path(path) = ty else { return false };
    let Some(last) = path.path.segments.last() else { return false };
    match &last.arguments {
        PathArguments::None => last.ident == "TaskContext",
        PathArguments::AngleBracketed(generics) => {
            last.ident == "State" && matches!(generics.args.first(), Some(GenericArgument::Type(_)))
        }
        PathArguments::Parenthesized(_) => false,
    }
}
