//! The connectors of a process, by scheme.

use std::{fmt, sync::Arc};

use machinist_core::url_list;

use super::Connector;
use crate::{
    redact,
    url::{Role, Scheme, ServerUrl},
};

/// Connectors of a process, by scheme. The default has those of this crate. Cheap to clone.
#[derive(Clone)]
pub struct Connectors(Vec<(Scheme, Arc<dyn Connector>)>);

impl Connectors {
    /// Creates a registry without any connector, not even those of this crate.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Adds a connector. It replaces the connectors of its schemes.
    #[must_use]
    pub fn with(mut self, connector: impl Connector) -> Self {
        let connector: Arc<dyn Connector> = Arc::new(connector);
        for scheme in connector.schemes() {
            let entry = (scheme, Arc::clone(&connector));
            match self.0.iter_mut().find(|(known, _)| known.as_str() == scheme.as_str()) {
                Some(known) => *known = entry,
                None => self.0.push(entry),
            }
        }
        self
    }

    /// Returns the schemes of a role, in the order in which they were added.
    pub fn schemes(&self, role: Role) -> impl Iterator<Item = Scheme> {
        self.0.iter().map(|(scheme, _)| *scheme).filter(move |scheme| scheme.fits(role))
    }

    /// Reads a URL, or several of one scheme that commas separate. The scheme has to be known and to fit the role.
    ///
    /// # Errors
    /// A sentence that names the known schemes of the role, without the password.
    pub fn url(&self, text: &str, role: Role) -> Result<ServerUrl, String> {
        let refuse = |why: &str| {
            let known: Vec<String> = self.schemes(role).map(|scheme| format!("{scheme}://")).collect();
            Err(format!("{why}; a {} is one of {}", role.as_str(), known.join(", ")))
        };
        let shown = redact::url(text);
        // It could be a password alone, so it is not repeated.
        let Some((word, _)) = text.split_once("://") else { return refuse("the text is not a URL") };
        let word = word.to_ascii_lowercase();
        match self.0.iter().find(|(scheme, _)| scheme.as_str() == word) {
            None => refuse(&format!("\"{shown}\" has an unknown scheme")),
            Some((scheme, _)) if !scheme.fits(role) => {
                refuse(&format!("\"{shown}\" is a {}, not a {}", role.other().as_str(), role.as_str()))
            }
            Some((scheme, connector)) => {
                let parts = url_list::split(text);
                if parts.len() > 1 && !connector.takes_list() {
                    return refuse(&format!("holds several URLs, and {scheme}:// takes one"));
                }
                let is_other = |part: &&str| {
                    !part.split_once("://").is_some_and(|(it, _)| it.eq_ignore_ascii_case(&word))
                };
                if parts.iter().any(is_other) {
                    return refuse(
                        "holds URLs with different schemes; name the nodes of one server with one scheme",
                    );
                }
                for part in &parts {
                    let part = ServerUrl::new(*scheme, part)?;
                    connector.check(&part).map_err(|why| format!("\"{part}\" {why}"))?;
                }
                let url = ServerUrl::new(*scheme, &parts.join(","))?;
                let reach = connector.reach(&url);
                Ok(url.reached_over(reach))
            }
        }
    }

    /// Returns the connector of a URL that this registry has read.
    pub(crate) fn connector(&self, url: &ServerUrl) -> Option<&dyn Connector> {
        let (_, connector) = self.0.iter().find(|(scheme, _)| scheme.as_str() == url.scheme().as_str())?;
        Some(connector.as_ref())
    }
}

impl fmt::Debug for Connectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(scheme, _)| scheme.as_str())).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::url::Reach;

    #[derive(Debug)]
    struct Kafka;

    impl Connector for Kafka {
        fn schemes(&self) -> Vec<Scheme> {
            vec![Scheme::broker("kafka", Reach::Network { over_tls: None })]
        }

        fn check(&self, url: &ServerUrl) -> Result<(), String> {
            if url.rest().is_empty() { Err("names no host; write kafka://HOST".to_owned()) } else { Ok(()) }
        }
    }

    #[test]
    fn a_list_names_the_nodes_of_one_server() {
        let connectors = Connectors::default();
        let url = |text: &str| connectors.url(text, Role::Broker).map(|url| url.to_string());
        assert_eq!(url("amqp://a, amqp://b/").unwrap(), "amqp://a,amqp://b/");
        assert_eq!(url("AMQP://u:x@a,amqp://u:y@b").unwrap(), "AMQP://u:***@a,amqp://u:***@b");
        assert!(url("amqp://a,amqps://b").unwrap_err().contains("different schemes"));
        assert!(url("sqlite://a,sqlite://b").unwrap_err().contains("takes one"));
        assert!(connectors.url("redis://a,redis://b", Role::Backend).unwrap_err().contains("takes one"));
    }

    #[test]
    fn every_scheme_of_a_role_is_known() {
        let connectors = Connectors::default();
        for role in [Role::Broker, Role::Backend] {
            for scheme in connectors.schemes(role) {
                let url = connectors.url(&format!("{scheme}://x"), role).unwrap();
                assert_eq!(url.scheme().as_str(), scheme.as_str());
            }
        }
        assert_eq!(connectors.url("AMQP://h", Role::Broker).unwrap().scheme().as_str(), "amqp");
    }

    #[test]
    fn what_does_not_fit_is_reported_without_the_password() {
        let connectors = Connectors::default();
        let error = |text, role| connectors.url(text, role).unwrap_err();
        assert_eq!(
            error("kafka://u:geheim@h", Role::Broker),
            "\"kafka://u:***@h\" has an unknown scheme; a broker is one of amqp://, amqps://, postgres://, postgresql://, \
             sqlite://, memory://"
        );
        assert!(
            error("redis://:geheim@h", Role::Broker)
                .starts_with("\"redis://:***@h\" is a backend, not a broker;")
        );
        assert!(
            error("localhost", Role::Backend)
                .starts_with("the text is not a URL; a backend is one of redis://,")
        );
        assert!(error("sqlite://", Role::Backend).contains("names no file"));
    }

    #[test]
    fn an_added_connector_is_listed_and_checks_its_urls() {
        let connectors = Connectors::default().with(Kafka).with(Kafka);
        assert!(connectors.url("kafka://h", Role::Broker).is_ok());
        let error = |text, role| connectors.url(text, role).unwrap_err();
        assert!(error("x://", Role::Broker).ends_with("memory://, kafka://"), "once");
        assert!(!error("x://", Role::Backend).contains("kafka"));
        assert_eq!(error("kafka://", Role::Broker), "\"kafka://\" names no host; write kafka://HOST");
    }
}
