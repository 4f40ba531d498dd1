//! A name that stands for several teachers: each is asked for its certificate, which must be of the name.

use std::{net::SocketAddr, time::Duration};

use student_worker::{
    label_client::{Job, LabelClient, Names, Patience, Probe, Teachers, Wanted},
    recipe,
};

use super::{Place, SERVER, WIDTH};
use crate::{client::features, pki::Authority, scenarios::Figures, student::Student};

const JOBS: u64 = 40;
/// No try is made after one that fails: its words are the error's.
const ONE_TRY: &str = ", initial_ms = 60000, max_ms = 60000";

pub(super) async fn run(figures: &mut Figures) {
    let authority = Authority::new("authority");
    let (token, hash) = teacher_server::new_token().unwrap();
    let place = Place::new(&authority, &format!("[clients.s]\ntokens = [{hash:?}]\n"));
    crate::pki::replace(&place.path().join("token"), &token);
    crate::pki::replace(&place.path().join("ca.crt"), &authority.pem);
    let teachers = [0, 1].map(|_| place.serve("optional", &[]));
    let addresses = teachers.each_ref().map(crate::process::Teacher::address);

    let labels = ask(&place, SERVER, &addresses, "").await;
    figures.require(labels == Ok(JOBS), format!("of a name for two teachers: {labels:?}"));
    for teacher in &teachers {
        let rows = teacher.metric("stillhouse_teacher_forward_rows_total");
        figures.require(rows > 1.0, format!("one of two teachers has computed {rows} rows"));
    }
    // The same teachers, by a name that their certificates do not have.
    let refused = ask(&place, "other.test", &addresses, ONE_TRY).await;
    figures.add("refused_by_name", refused.clone().err().unwrap_or_default());
    let about_name = refused.is_err_and(|error| error.contains("certificate"));
    figures.require(about_name, "a certificate of another name was taken");
}

/// Asks for labels of rows, one by one, of the teachers that a name stands for; how many came.
async fn ask(
    place: &Place,
    name: &str,
    addresses: &[SocketAddr],
    pauses: &str,
) -> Result<u64, String> {
    let at = |name: &str| place.path().join(name);
    let sections = format!(
        "student = {{ model_type = \"mlp\", input_size = {WIDTH}, hidden_sizes = [4], num_labels = 10 }}\n\
         loss = {{ alpha = 0.9, temperature = 4.0 }}\n\
         [teacher]\nkind = \"endpoints\"\nendpoints = [\"https://{name}\"]\ntoken_file = {:?}\n\
         tls = {{ ca = {:?} }}\nretry = {{ max_elapsed_seconds = 20{pauses} }}\n",
        at("token"),
        at("ca.crt"),
    );
    let student = Student::new(place.path(), name, 320, &sections);
    let recipe = recipe::load(student.recipe(), &[]).map_err(|error| error.to_string())?;
    let section = recipe.teacher.clone().ok_or("no teacher")?;
    let stands_for = addresses.to_vec();
    let names =
        Names::new(move |_, _| std::future::ready(Ok(stands_for.clone())), Duration::from_secs(60));
    let row = |index: u64| features(&[index as f32 / JOBS as f32; WIDTH], WIDTH);
    let probe = Probe { inputs: row(0), floats: None, rows: 1 };
    let teachers = Teachers { names, ..Teachers::of(&section) };
    let patience = Patience::new(&section, 1);
    let wanted = Wanted::new(&recipe, &section);
    let client = LabelClient::connect(&teachers, wanted, probe, patience).await;
    let temperature = recipe.loss.temperature as f32;
    let jobs = (0..JOBS).map(move |index| Job {
        index,
        inputs: row(index),
        rows: 1,
        temperature,
        seed: 0,
        whole: false,
    });
    let mut labels = client.map_err(|error| error.to_string())?.labels(jobs);
    let mut count = 0;
    while let Some(labelled) = labels.next().await {
        labelled.map_err(|error| error.to_string())?;
        count += 1;
    }
    Ok(count)
}
