//! An object as a store sees it: the envelope parsed, what is in it as text.

use std::fmt;
use std::sync::Arc;

use ankole_api::object::{Metadata, Object, Spec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// JSON without blanks and with its keys in order: the same text is the same content. It is text
/// because a tree takes several times the memory, and nobody here looks into it.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Arc<str>);

impl Json {
    /// Fails only for what JSON can't say, such as a map whose keys aren't strings.
    pub fn of<T: Serialize>(value: &T) -> serde_json::Result<Self> {
        Ok(Self::from(&serde_json::to_value(value)?))
    }

    pub fn parse<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(&self.0)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        Self(value.to_string().into())
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    pub metadata: Metadata,
    spec: Json,
    /// None until somebody writes one.
    status: Option<Json>,
    /// The field `node` of the spec.
    node: Option<Arc<str>>,
}

#[derive(Deserialize)]
struct Envelope {
    metadata: Metadata,
    spec: Value,
    #[serde(default)]
    status: Option<Value>,
}

impl Raw {
    pub fn new(metadata: Metadata, spec: &Value, status: Option<&Value>) -> Self {
        let node = spec.get("node").and_then(Value::as_str).map(Arc::from);
        Self { metadata, spec: spec.into(), status: status.map(Json::from), node }
    }

    pub fn of<S: Spec>(object: &Object<S>) -> Self {
        let json = "objects have string keys and no failing serializer";
        let spec = serde_json::to_value(&object.spec).expect(json);
        let status = serde_json::to_value(&object.status).expect(json);
        Self::new(object.metadata.clone(), &spec, Some(&status))
    }

    pub fn parse<S: Spec>(&self) -> serde_json::Result<Object<S>> {
        let status = self.status.as_ref().map(Json::parse).transpose()?.unwrap_or_default();
        Ok(Object { metadata: self.metadata.clone(), spec: self.spec.parse()?, status })
    }

    pub fn from_json(json: &str) -> serde_json::Result<Self> {
        let Envelope { metadata, spec, status } = serde_json::from_str(json)?;
        Ok(Self::new(metadata, &spec, status.as_ref()))
    }

    /// The whole object.
    pub fn to_json(&self) -> String {
        let metadata = self.metadata_json();
        let spec = self.spec.as_str();
        match &self.status {
            Some(status) => {
                let status = status.as_str();
                format!(r#"{{"metadata":{metadata},"spec":{spec},"status":{status}}}"#)
            }
            None => format!(r#"{{"metadata":{metadata},"spec":{spec}}}"#),
        }
    }

    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    pub fn spec(&self) -> &Json {
        &self.spec
    }

    pub fn status(&self) -> Option<&Json> {
        self.status.as_ref()
    }

    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Of its JSON, about.
    pub fn size_bytes(&self) -> usize {
        let status = self.status.as_ref().map_or(0, |status| status.0.len());
        self.metadata_json().len() + self.spec.0.len() + status
    }

    fn metadata_json(&self) -> String {
        serde_json::to_string(&self.metadata).expect("metadata has string keys")
    }

    #[must_use]
    pub(crate) fn with_spec_of(self, other: &Self) -> Self {
        Self { spec: other.spec.clone(), node: other.node.clone(), ..self }
    }

    #[must_use]
    pub(crate) fn with_status(self, status: Option<Json>) -> Self {
        Self { status, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object that was written by hand, or read back with its keys in another order, must not
    /// count as changed.
    #[test]
    fn the_same_content_is_the_same_whatever_its_text() {
        let one = r#"{"metadata": {"name": "v1"}, "spec": {"b": 1, "a": [1.0, null]}}"#;
        let two = r#"{"spec":{"a":[1.0,null],"b":1},"metadata":{"name":"v1"},"status":null}"#;
        let (one, two) = (Raw::from_json(one).unwrap(), Raw::from_json(two).unwrap());
        assert_eq!(one, two);
        assert_eq!(Raw::from_json(&one.to_json()).unwrap(), one);
    }

    #[test]
    fn the_node_is_the_specs() {
        let node = |spec: &str| {
            let raw = Raw::from_json(&format!(r#"{{"metadata":{{"name":"v"}},"spec":{spec}}}"#));
            raw.unwrap().node().map(str::to_owned)
        };
        assert_eq!(node(r#"{"node": "a"}"#).as_deref(), Some("a"));
        assert_eq!(node(r#"{"node": null}"#), None);
        assert_eq!(node("7"), None);
    }
}
