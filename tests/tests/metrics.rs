//! Every metric of the catalogue shows before the first request.

#![allow(clippy::unwrap_used, missing_docs)]

use stillhouse_tests::{client, models, process::Teacher};

#[tokio::test]
async fn metrics_show_before_the_first_request_and_count_after_it() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 4, &[8], 5, 1);
    let teacher = Teacher::start(folder.path(), &[]);
    let text = teacher.metrics();
    for metric in teacher_server::metrics::CATALOGUE {
        for part in ["HELP", "TYPE"] {
            assert!(
                text.contains(&format!("# {part} {} ", metric.name)),
                "{}\n{text}",
                metric.name
            );
        }
        for labels in metric.series {
            let series = labels.iter().map(|(key, value)| format!("{key}=\"{value}\""));
            let series = format!("{}{{{}}} 0", metric.name, series.collect::<Vec<_>>().join(","));
            assert!(text.contains(&series), "{series}\n{text}");
        }
    }
    assert_eq!(teacher.metric("stillhouse_teacher_serving"), 1.0);

    let mut client = client::connect(teacher.address()).await;
    client.label(client::request(1, &[0.0; 12], 4)).await.unwrap();
    assert_eq!(teacher.metric("stillhouse_teacher_rows_total{encoding=\"dense\"}"), 3.0);
    let batches = "stillhouse_teacher_batches_total{reason=\"waited\"}";
    assert_eq!(teacher.metric(batches), 1.0);
    assert_eq!(teacher.metric("stillhouse_teacher_batch_rows_count"), 1.0);
    assert!(teacher.metric("stillhouse_teacher_label_bytes_total{encoding=\"dense\"}") >= 60.0);
}
