//! The classes that a classifier tells apart, by number and by name.

use serde_json::Value;
use stillhouse_nn::TransformerConfig;

/// Classes of a model, with the names that its `config.json` gives them as `id2label`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Empty where a class has none.
    names: Vec<String>,
}

impl Classes {
    /// Those of a classifier.
    pub fn of(config: &TransformerConfig) -> Self {
        let given = config.json().get("id2label").and_then(Value::as_object);
        let name = |class: usize| given?.get(&class.to_string())?.as_str();
        let names = (0..config.classes()).map(|class| name(class).unwrap_or_default().to_owned());
        Self { names: names.collect() }
    }

    /// Number of classes.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// What decides which class a label is of.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// The class that a label names, by number from 0 or by name.
    ///
    /// # Errors
    /// In words, if it is none.
    pub(super) fn find(&self, label: &str) -> Result<u32, String> {
        let named = self.names.iter().position(|name| !name.is_empty() && name == label);
        let numbered = || label.parse().ok().filter(|class| *class < self.count());
        named.or_else(numbered).map(|class| class as u32).ok_or_else(|| {
            let names: Vec<&str> =
                self.names.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
            let names = match names.as_slice() {
                [] => String::new(),
                names => format!(", or one of {}", names.join(", ")),
            };
            format!("the label is {label:?}, expected 0 to {}{names}", self.count() - 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(more: &str) -> Classes {
        let json = format!(r#"{{"model_type": "bert", "num_hidden_layers": 1{more}}}"#);
        let json = serde_json::from_str(&json).unwrap();
        Classes::of(&TransformerConfig::from_json(json).unwrap())
    }

    #[test]
    fn labels_are_numbers_or_names() {
        let named = classes(r#", "id2label": {"0": "no", "1": "yes", "2": "0"}"#);
        assert_eq!(named.find("yes"), Ok(1));
        assert_eq!(named.find("1"), Ok(1));
        // A name goes before a number.
        assert_eq!(named.find("0"), Ok(2));
        let error = named.find("3").unwrap_err();
        assert_eq!(error, "the label is \"3\", expected 0 to 2, or one of no, yes, 0");
        let plain = classes(r#", "num_labels": 4"#);
        assert_eq!((plain.count(), plain.find("3")), (4, Ok(3)));
        assert_eq!(plain.find("").unwrap_err(), "the label is \"\", expected 0 to 3");
        assert!(plain.find("-1").is_err());
    }
}
