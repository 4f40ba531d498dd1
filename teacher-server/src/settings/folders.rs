//! A folder or a list of folders, as a setting: `model = "A"` or `model = ["A", "B"]`.

use std::{fmt, path::PathBuf};

use serde::{
    Deserializer, Serialize as _, Serializer,
    de::{Error, SeqAccess, Visitor},
};

pub(super) fn serialize<S: Serializer>(
    folders: &[PathBuf],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match folders {
        [folder] => folder.serialize(serializer),
        folders => folders.serialize(serializer),
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<PathBuf>, D::Error> {
    deserializer.deserialize_any(Folders)
}

struct Folders;

impl<'de> Visitor<'de> for Folders {
    type Value = Vec<PathBuf>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a folder or a list of folders")
    }

    fn visit_str<E: Error>(self, folder: &str) -> Result<Self::Value, E> {
        Ok(vec![folder.into()])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut folders = Vec::new();
        while let Some(folder) = list.next_element()? {
            folders.push(folder);
        }
        Ok(folders)
    }
}
