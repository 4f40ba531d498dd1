//! Conversations to text, by the template that a tokenizer comes with.
//!
//! Templates are Jinja, as transformers' `apply_chat_template` runs them: `messages`,
//! `add_generation_prompt`, the special tokens, `raise_exception`, and the methods of Python's strings.

use std::path::{Path, PathBuf};

use minijinja::{
    Environment, Error, ErrorKind, Value, context, syntax::SyntaxConfig, value::Serde,
};
use serde_json::{Map, Value as Json};

use super::{error::TextError, source::Part};

/// Steps of a template for one conversation: a loop over messages needs a few hundred each.
const FUEL: u64 = 10_000_000;
/// Where a tokenizer's settings, its template among them, lie.
const SETTINGS: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// A template and the special tokens that it may name.
#[derive(Clone, Debug)]
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Map<String, Json>,
    source: PathBuf,
}

impl ChatTemplate {
    /// The template in a file of its own, or of the tokenizer in a folder.
    pub(super) fn load(file: Option<&Path>, folder: &Path) -> Result<Self, TextError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|source| TextError::Io { path: path.to_owned(), source })
        };
        let settings = folder.join(SETTINGS);
        let tokens: Map<String, Json> = match settings.is_file() {
            false => Map::new(),
            true => serde_json::from_str(&read(&settings)?).map_err(|error| {
                TextError::Template { path: settings.clone(), reason: error.to_string() }
            })?,
        };
        let beside = folder.join(TEMPLATE_FILE);
        let (text, source) = match file {
            Some(file) => (read(file)?, file.to_owned()),
            None if beside.is_file() => (read(&beside)?, beside),
            None => match tokens.get("chat_template") {
                Some(Json::String(text)) => (text.clone(), settings),
                _ => {
                    let reason = "no chat_template; name a file with data.chat_template".to_owned();
                    return Err(TextError::Template { path: settings, reason });
                }
            },
        };
        let fault =
            |error: Error| TextError::Template { path: source.clone(), reason: error.to_string() };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(fault)?);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        });
        environment.add_template_owned("chat", text).map_err(fault)?;
        Ok(Self { environment, tokens, source })
    }

    /// A special token of the settings, as text.
    fn token(&self, name: &str) -> Option<String> {
        match self.tokens.get(name)? {
            Json::String(text) => Some(text.clone()),
            Json::Object(token) => Some(token.get("content")?.as_str()?.to_owned()),
            _ => None,
        }
    }

    fn render(&self, messages: &[Json], add_generation_prompt: bool) -> Result<String, String> {
        let template = self.environment.get_template("chat").map_err(|error| error.to_string())?;
        let context = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt,
            bos_token => self.token("bos_token").unwrap_or_default(),
            eos_token => self.token("eos_token").unwrap_or_default(),
            unk_token => self.token("unk_token").unwrap_or_default(),
            pad_token => self.token("pad_token").unwrap_or_default(),
            tools => (),
            documents => (),
        };
        template.render(context).map_err(|error| {
            let place = self.source.display();
            format!("the chat template ({place}) refuses it: {error}")
        })
    }

    /// A conversation in parts: what the assistant says is learnt, and where `all`, the rest too.
    ///
    /// The assistant's part is what the template makes of a message beyond the prompt for it. A template
    /// that writes earlier messages otherwise once later ones are there has no such part.
    pub(super) fn parts(&self, messages: &[Json], all: bool) -> Result<Vec<Part>, String> {
        let whole = self.render(messages, false)?;
        let mut parts = vec![];
        let mut done = 0;
        let mut push = |until: usize, learn: bool, done: &mut usize| {
            let text = whole.get(*done..until);
            parts.push(Part { text: text.unwrap_or_default().to_owned(), learn });
            *done = until;
        };
        for (at, message) in messages.iter().enumerate() {
            if message.get("role").and_then(Json::as_str) != Some("assistant") {
                continue;
            }
            let prompt = self.render(&messages[..at], true)?;
            let said = self.render(&messages[..=at], false)?;
            let fits = said.starts_with(&prompt) && whole.starts_with(&said);
            if !fits || prompt.len() < done {
                return Err(format!(
                    "the chat template ({}) does not keep what is before message {at} as it was",
                    self.source.display()
                ));
            }
            push(prompt.len(), all, &mut done);
            push(said.len(), true, &mut done);
        }
        push(whole.len(), all, &mut done);
        parts.retain(|part| !part.text.is_empty());
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As models of the Qwen family have it, in essence.
    const CHATML: &str = "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + \
        message.content.strip() + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}\
        {{- '<|im_start|>assistant\\n' }}{%- endif %}";

    fn template(text: &str) -> Result<ChatTemplate, String> {
        let folder = tempfile::tempdir().unwrap();
        let settings = serde_json::json!({
            "chat_template": text, "eos_token": { "content": "<|im_end|>" }, "bos_token": "<s>"
        });
        std::fs::write(folder.path().join(SETTINGS), settings.to_string()).unwrap();
        ChatTemplate::load(None, folder.path()).map_err(|error| error.to_string())
    }

    fn messages(turns: &[(&str, &str)]) -> Vec<Json> {
        let turn = |(role, content): &(&str, &str)| serde_json::json!({ "role": role, "content": content });
        turns.iter().map(turn).collect()
    }

    #[test]
    fn what_the_assistant_says_is_learnt() {
        let chat = template(CHATML).unwrap();
        let turns = messages(&[
            ("user", " Hi "),
            ("assistant", "Hello"),
            ("user", "Bye"),
            ("assistant", "B"),
        ]);
        let parts = chat.parts(&turns, false).unwrap();
        let found: Vec<(&str, bool)> =
            parts.iter().map(|part| (part.text.as_str(), part.learn)).collect();
        assert_eq!(
            found,
            [
                ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", false),
                ("Hello<|im_end|>\n", true),
                ("<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n", false),
                ("B<|im_end|>\n", true),
            ]
        );
        assert!(chat.parts(&turns, true).unwrap().iter().all(|part| part.learn));
        // A question without an answer has nothing to learn.
        let parts = chat.parts(&turns[..1], false).unwrap();
        assert_eq!((parts.len(), parts[0].learn), (1, false));
    }

    #[test]
    fn special_tokens_and_a_files_own_exceptions() {
        let chat = template("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}").unwrap();
        let parts = chat.parts(&messages(&[("user", "x")]), true).unwrap();
        assert_eq!(parts[0].text, "<s>x<|im_end|>");
        let strict =
            "{% if messages[0].role != 'user' %}{{ raise_exception('no user') }}{% endif %}";
        let error = template(strict).unwrap().parts(&messages(&[("tool", "x")]), true).unwrap_err();
        assert!(error.contains("refuses it") && error.contains("no user"), "{error}");
    }

    #[test]
    fn templates_that_cannot_be_used_are_named() {
        let error = template("{% for %}").unwrap_err();
        assert!(
            error.contains("tokenizer_config.json") && error.contains("syntax error"),
            "{error}"
        );
        let folder = tempfile::tempdir().unwrap();
        let error = ChatTemplate::load(None, folder.path()).unwrap_err().to_string();
        assert!(error.contains("no chat_template; name a file with data.chat_template"), "{error}");
        // It shows how many messages there are, so earlier text changes with later ones.
        let moving =
            template("{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}");
        let turns = messages(&[("user", "a"), ("assistant", "b"), ("user", "c")]);
        let error = moving.unwrap().parts(&turns, false).unwrap_err();
        assert!(error.contains("does not keep what is before message 1"), "{error}");
        let endless =
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
        let error = template(endless).unwrap().parts(&turns, false).unwrap_err();
        assert!(error.contains("refuses it"), "{error}");
    }
}
