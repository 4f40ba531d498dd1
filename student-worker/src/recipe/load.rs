//! From a file and overrides to a recipe that can be run.

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf, absolute},
};

use stillhouse_nn::LossError;
use stillhouse_runtime::config::{self, ConfigError};
use toml::Table;

use super::{
    Invalid, Recipe, TeacherSection,
    teacher::{TeacherKind, TeacherTls},
    validate::validate,
};

/// Why a recipe cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file is not readable or not TOML, or a key is unknown, missing or of the wrong type.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A value is outside its range.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The student, the loss, the optimizer or the schedule has a value outside its range: key,
    /// value and range.
    #[error("{0}")]
    Section(String),
    /// A path cannot be made absolute.
    #[error("{key}: {} cannot be made absolute", path.display())]
    Path {
        /// The key that holds it.
        key: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Reads a recipe, applies `key=value` overrides in order, resolves its paths against the folder
/// of the file (those of overrides too), and validates every value.
///
/// # Errors
/// If anything about it is not accepted; nothing else has been opened or created by then.
pub fn load(file: &Path, overrides: &[String]) -> Result<Recipe, RecipeError> {
    let (table, folder) = read(file, overrides)?;
    from_table(table, folder)
}

/// A file's table after `key=value` overrides, and the folder that its paths are relative to.
///
/// # Errors
/// If it cannot be read, or is not TOML.
pub(crate) fn read<'a>(
    file: &'a Path,
    overrides: &[String],
) -> Result<(Table, &'a Path), RecipeError> {
    let mut table = config::read_file(file)?;
    for argument in overrides {
        config::assign(&mut table, argument)?;
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    Ok((table, folder.unwrap_or(Path::new("."))))
}

/// Makes a recipe of what a file in `folder` would hold, as [`load`] does.
///
/// # Errors
/// As [`load`].
pub fn from_table(table: Table, folder: &Path) -> Result<Recipe, RecipeError> {
    let mut recipe: Recipe = config::read(table)?;
    if let Some(teacher) = &mut recipe.teacher
        && teacher.kind != TeacherKind::Captured
    {
        // A default like any other, written out with them.
        teacher.encoding.get_or_insert_default();
    }
    resolve_paths(&mut recipe, folder)?;
    check(&recipe)?;
    Ok(recipe)
}

/// Checks a recipe that was not read from a file.
///
/// # Errors
/// If a value is outside its range.
pub fn check(recipe: &Recipe) -> Result<(), RecipeError> {
    fn section<E: Display>(prefix: &str) -> impl Fn(E) -> RecipeError {
        move |error| RecipeError::Section(format!("{prefix}{error}"))
    }
    recipe.student.validate().map_err(section("student."))?;
    recipe.loss.validate().map_err(|error| {
        // These are keys of the divergence's own table.
        let divergence = matches!(error, LossError::Config { field: "beta" | "lambda", .. });
        section(if divergence { "loss.divergence." } else { "loss." })(error)
    })?;
    // These two name their section themselves.
    recipe.optimizer.validate().map_err(section(""))?;
    recipe.schedule.validate().map_err(section(""))?;
    Ok(validate(recipe)?)
}

fn resolve_paths(recipe: &mut Recipe, folder: &Path) -> Result<(), RecipeError> {
    let data = &mut recipe.data;
    let mut paths = vec![
        ("data.dir", data.dir.as_mut_slice()),
        ("data.train_images", data.train_images.as_mut_slice()),
        ("data.train_labels", data.train_labels.as_mut_slice()),
        ("data.test_images", data.test_images.as_mut_slice()),
        ("data.test_labels", data.test_labels.as_mut_slice()),
        ("output.dir", recipe.output.dir.as_mut_slice()),
    ];
    if let Some(teacher) = &mut recipe.teacher {
        paths.push(("teacher.model", teacher.model.as_mut_slice()));
        paths.push(("teacher.models", teacher.models.as_mut_slice()));
        paths.push(("teacher.dir", teacher.dir.as_mut_slice()));
    }
    for (key, given) in paths {
        for path in given {
            resolve(key, path, folder)?;
        }
    }
    if let Some(teacher) = &mut recipe.teacher {
        resolve_credentials(teacher, folder)?;
    }
    for (key, list) in
        [("data.train_files", &mut data.train_files), ("data.test_files", &mut data.test_files)]
    {
        for path in list {
            resolve(key, path, folder)?;
        }
    }
    Ok(())
}

/// Makes the paths of a teacher's credentials absolute. Links stay: what a mounted Secret's name links
/// to goes when the Secret changes.
pub(crate) fn resolve_credentials(
    teacher: &mut TeacherSection,
    folder: &Path,
) -> Result<(), RecipeError> {
    let mut paths = vec![("teacher.token_file", &mut teacher.token_file)];
    if let Some(TeacherTls { ca, cert, key, .. }) = &mut teacher.tls {
        paths.extend([
            ("teacher.tls.ca", ca),
            ("teacher.tls.cert", cert),
            ("teacher.tls.key", key),
        ]);
    }
    for (key, path) in paths {
        if let Some(path) = path {
            *path = absolute_path(key, path, folder)?;
        }
    }
    Ok(())
}

pub(crate) fn resolve(
    key: &'static str,
    path: &mut PathBuf,
    folder: &Path,
) -> Result<(), RecipeError> {
    *path = short(&absolute_path(key, path, folder)?);
    Ok(())
}

fn absolute_path(key: &'static str, path: &Path, folder: &Path) -> Result<PathBuf, RecipeError> {
    if path.as_os_str().is_empty() {
        return Err(RecipeError::Section(format!("{key} is empty; expected a path")));
    }
    let joined = folder.join(path);
    absolute(&joined).map_err(|source| RecipeError::Path { key, path: joined.clone(), source })
}

/// The path without `..` and links in the part of it that exists, as a person would write it.
fn short(path: &Path) -> PathBuf {
    let real = path.ancestors().find_map(|part| Some((part, part.canonicalize().ok()?)));
    let Some((part, real)) = real else { return path.to_owned() };
    match path.strip_prefix(part) {
        Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
        _ => real,
    }
}

#[cfg(test)]
mod tests;
