//! Conversations to text, by the template that a tokenizer comes with.
//!
//! Templates are Jinja, as transformers' `apply_chat_template` runs them: `messages`,
//! `add_generation_prompt`, the special tokens, `raise_exception`, and the methods of Python's strings.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

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

/// Messages of a conversation: each of the assistant's is two more renderings of all before it.
const MAX_MESSAGES: usize = 1024;
/// Bytes of a conversation's text.
const MAX_BYTES: usize = 1 << 26;

/// A tokenizer's settings; none where it comes without.
fn settings_of(folder: &Path) -> Result<Map<String, Json>, TextError> {
    let path = folder.join(SETTINGS);
    if !path.is_file() {
        return Ok(Map::new());
    }
    let text = std::fs::read_to_string(&path)
        .map_err(|source| TextError::Io { path: path.clone(), source })?;
    serde_json::from_str(&text)
        .map_err(|error| TextError::Template { path, reason: error.to_string() })
}

/// A special token of the settings, as text.
fn special_token(settings: &Map<String, Json>, name: &str) -> Option<String> {
    match settings.get(name)? {
        Json::String(text) => Some(text.clone()),
        Json::Object(token) => Some(token.get("content")?.as_str()?.to_owned()),
        _ => None,
    }
}

/// The token that ends a text, as a tokenizer's settings have it.
pub(super) fn eos_token(folder: &Path) -> Result<Option<String>, TextError> {
    Ok(special_token(&settings_of(folder)?, "eos_token"))
}

/// What is written, up to a bound.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_BYTES - self.0.len() {
            return Err(io::Error::other(format!("more than {MAX_BYTES} bytes of text")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A template and the special tokens that it may name. Templates are trusted as far as what they hold in
/// memory: only their steps and their text are bounded.
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
        let tokens = settings_of(folder)?;
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

    fn render(&self, messages: &[Json], add_generation_prompt: bool) -> Result<String, String> {
        let template = self.environment.get_template("chat").map_err(|error| error.to_string())?;
        let token = |name: &str| special_token(&self.tokens, name).unwrap_or_default();
        let context = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt,
            bos_token => token("bos_token"),
            eos_token => token("eos_token"),
            unk_token => token("unk_token"),
            pad_token => token("pad_token"),
            tools => (),
            documents => (),
        };
        let mut out = Bounded(vec![]);
        template.render_captured_to(context, &mut out).map_err(|error| {
            let place = self.source.display();
            format!("the chat template ({place}) refuses it: {error}")
        })?;
        String::from_utf8(out.0).map_err(|error| error.to_string())
    }

    /// A conversation in parts: what the assistant says is learnt, and where `all`, the rest too.
    ///
    /// The assistant's part is what the template makes of a message beyond the prompt for it. A template
    /// that writes earlier messages otherwise once later ones are there has no such part.
    pub(super) fn parts(&self, messages: &[Json], all: bool) -> Result<Vec<Part>, String> {
        if messages.len() > MAX_MESSAGES {
            return Err(format!("{} messages, expected at most {MAX_MESSAGES}", messages.len()));
        }
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
