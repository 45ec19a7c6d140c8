//! Which objects of a kind are meant.

use std::collections::BTreeMap;

use crate::Raw;

/// All by default; what is said must all be so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Each with exactly this value.
    pub labels: BTreeMap<String, String>,
    /// The field `spec.node`.
    pub node: Option<String>,
}

impl Selector {
    pub fn all() -> Self {
        Self::default()
    }

    pub fn on_node(node: &str) -> Self {
        Self { node: Some(node.into()), ..Self::default() }
    }

    #[must_use]
    pub fn with_label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    pub fn matches(&self, object: &Raw) -> bool {
        let has = |(key, value)| object.metadata.labels.get(key) == Some(value);
        self.node.as_deref().is_none_or(|node| object.node() == Some(node))
            && self.labels.iter().all(has)
    }
}
