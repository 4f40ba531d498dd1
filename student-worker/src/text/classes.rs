//! The classes that a classifier tells apart, by number and by name.

use serde_json::Value;
use stillhouse_nn::TransformerConfig;

/// A label as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label<'a> {
    /// Of a number's type: that of a class.
    Number(&'a str),
    /// A text, which may be a name or a number.
    Text(&'a str),
}

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

    /// The class that a label is about, by number from 0 or by name.
    ///
    /// # Errors
    /// In words, if it is none, or one by its number and another by its name.
    pub(super) fn find(&self, label: Label<'_>) -> Result<u32, String> {
        let (text, named) = match label {
            Label::Number(text) => (text, None),
            Label::Text(text) => {
                let is_name = |name: &String| !name.is_empty() && name == text;
                (text, self.names.iter().position(is_name))
            }
        };
        let numbered = text.parse().ok().filter(|class| *class < self.count());
        match (named, numbered) {
            (Some(named), Some(numbered)) if named != numbered => Err(format!(
                "the label is the text {text:?}, the number of class {numbered} and in the student's \
                 id2label the name of class {named}; expected a number, not a text"
            )),
            (Some(class), _) | (None, Some(class)) => Ok(class as u32),
            (None, None) => {
                let all: Vec<&str> =
                    self.names.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
                let names = match all.as_slice() {
                    [] => "; the student's id2label names none".to_owned(),
                    names => format!(", or a name of the student's id2label: {}", names.join(", ")),
                };
                Err(format!("the label is {text:?}, expected 0 to {}{names}", self.count() - 1))
            }
        }
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
        assert_eq!(named.find(Label::Text("yes")), Ok(1));
        assert_eq!(named.find(Label::Text("1")), Ok(1));
        assert_eq!(named.find(Label::Number("0")), Ok(0));
        // The text is the name of one class and the number of another.
        let error = named.find(Label::Text("0")).unwrap_err();
        assert!(error.contains("the number of class 0 and in the student's id2label"), "{error}");
        let error = named.find(Label::Text("3")).unwrap_err();
        let expected = "the label is \"3\", expected 0 to 2, or a name of the student's id2label: no, \
                        yes, 0";
        assert_eq!(error, expected);
        assert!(named.find(Label::Number("yes")).is_err());
        let plain = classes(r#", "num_labels": 4"#);
        assert_eq!((plain.count(), plain.find(Label::Text("3"))), (4, Ok(3)));
        let error = plain.find(Label::Text("")).unwrap_err();
        let expected = "the label is \"\", expected 0 to 3; the student's id2label names none";
        assert_eq!(error, expected);
        assert!(plain.find(Label::Number("-1")).is_err());
    }
}
