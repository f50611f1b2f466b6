//! A request as handlers see it: who makes it, what it asks for, and the way to the first page.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{FromRequestParts, OriginalUri},
    http::{Uri, request::Parts},
};

use crate::{access::Actor, link, sight::Sight, site::Site, web_error::WebError};

/// Parameters that belong to one view of a page: the notice about an action, and a selection. An action does not return to
/// them.
pub(crate) const NOTICE: [&str; 3] = ["done", "sent", "select"];
/// Maximum number of parameters that are read.
const MAX_PARAMETERS: usize = 100;

/// Parameters of a request, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct QueryFields(Vec<(String, String)>);

impl QueryFields {
    pub(crate) fn parse(encoded: &[u8]) -> Self {
        let pairs = url::form_urlencoded::parse(encoded).take(MAX_PARAMETERS);
        Self(pairs.map(|(name, value)| (name.into_owned(), value.into_owned())).collect())
    }

    /// Returns the first value of a name that is not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let all = self.0.iter().filter(|(own, _)| own == name).map(|(_, value)| value.trim());
        all.into_iter().find(|value| !value.is_empty())
    }

    /// Returns the first value of a name, which is empty if there is none.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// Returns all parameters but some.
    pub(crate) fn without(&self, left_out: &[&str]) -> Vec<(&str, &str)> {
        let kept = self.0.iter().filter(|(name, _)| !left_out.contains(&name.as_str()));
        kept.map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    /// Returns all values of a name.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(own, _)| own == name).map(|(_, value)| value.clone()).collect()
    }
}

/// Request of somebody who may see the dashboard.
#[derive(Debug, Clone)]
pub(crate) struct Visit {
    pub(crate) site: Arc<Site>,
    pub(crate) actor: Actor,
    /// Way to the first page.
    pub(crate) root: String,
    /// Address of this page, from the first page.
    pub(crate) here: String,
    pub(crate) query: QueryFields,
}

impl Visit {
    /// Returns what the author of the request sees.
    pub(crate) fn sight(&self) -> &Sight {
        self.actor.user.sight()
    }

    /// Returns the value of a parameter that is a number.
    ///
    /// # Errors
    /// It is no number of the range.
    pub(crate) fn limit(&self, default: usize, most: usize) -> Result<usize, WebError> {
        let Some(text) = self.query.get("limit") else { return Ok(default) };
        let number = text.parse().ok().filter(|number| (1..=most).contains(number));
        number.ok_or_else(|| {
            WebError::wrong(format!("limit={text} is no number of 1 to {most}"))
                .remedy("leave it out, or correct it")
        })
    }
}

/// Returns the way from the page of a request to the first page.
pub(crate) fn root_of(uri: &Uri, original: Option<&OriginalUri>) -> String {
    link::root(uri.path(), original.map_or(uri, |OriginalUri(original)| original).path())
}

impl FromRequestParts<Arc<Site>> for Visit {
    type Rejection = WebError;

    async fn from_request_parts(parts: &mut Parts, site: &Arc<Site>) -> Result<Self, WebError> {
        // The guard has put it there: nobody gets here without.
        let actor = Extension::<Actor>::from_request_parts(parts, site).await;
        let Ok(Extension(actor)) = actor else { return Err(WebError::forbidden("nobody is logged in")) };
        let query = parts.uri.query().unwrap_or_default();
        let path = parts.uri.path().trim_start_matches('/');
        let query = QueryFields::parse(query.as_bytes());
        Ok(Self {
            site: Arc::clone(site),
            actor,
            root: root_of(&parts.uri, parts.extensions.get::<OriginalUri>()),
            here: link::list(path, &query.without(&NOTICE)),
            query,
        })
    }
}
