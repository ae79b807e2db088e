//! Many clients at once, on several threads.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_clients_at_once_are_one_call_for_each_url() {
    const CLIENTS: usize = 1_000;
    const CALL: Duration = Duration::from_millis(50);
    let origin = Origin::new(|n, request| async move {
        tokio::time::sleep(CALL).await;
        Ok(fresh().body(text(&format!("{n} {}", request.uri().path()))).unwrap())
    });
    let cache = origin.cached();
    let started = Instant::now();
    let clients = (0..CLIENTS).map(|n| {
        let cache = cache.clone();
        tokio::spawn(async move { send(&cache, get(["/even", "/odd"][n % 2])).await })
    });
    let answers: Vec<_> = join_all(clients.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap).collect();
    let took = started.elapsed();
    assert_eq!(origin.calls(), 2);
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.text().ends_with(["/even", "/odd"][n % 2]), "{answer:?}");
        assert_eq!(answer.text(), answers[n % 2].text());
    }
    let count = |status: &str| answers.iter().filter(|answer| answer.cache_status().starts_with(status)).count();
    assert_eq!(count("tower-scale; fwd=uri-miss; stored"), 2);
    assert_eq!(count("tower-scale; fwd=uri-miss; collapsed") + count("tower-scale; hit"), CLIENTS - 2);
    // An idle machine takes a tenth of this; nobody waits for a second call, or for a timer of the cache.
    assert!(took < 20 * CALL, "{took:?}");
}
