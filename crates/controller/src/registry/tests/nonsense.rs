// SPDX-License-Identifier: Apache-2.0
//! Requests that no good client sends, to every endpoint of the table with every method.

use super::super::name::{Reference, RepositoryName, parse_digest};
use super::super::route::{Endpoint, endpoint};
use super::*;
use uuid::Uuid;

/// One of each. A new one has to be numbered below, and then to be here.
fn all() -> Vec<Endpoint> {
    let name = || RepositoryName::parse("a/b").unwrap();
    let digest = parse_digest(&format!("sha256:{}", "0".repeat(64))).unwrap();
    vec![
        Endpoint::Ping,
        Endpoint::Catalog,
        Endpoint::Tags(name()),
        Endpoint::Manifest(name(), Reference::parse("v1").unwrap()),
        Endpoint::Blob(name(), digest),
        Endpoint::Uploads(name()),
        Endpoint::Upload(name(), Some(Uuid::from_u128(7))),
        Endpoint::Referrers(name(), digest),
    ]
}

/// Its number, and a path that leads there.
fn path_of(endpoint: &Endpoint) -> (usize, String) {
    let digest = format!("sha256:{}", "0".repeat(64));
    match endpoint {
        Endpoint::Ping => (0, String::new()),
        Endpoint::Catalog => (1, "_catalog".into()),
        Endpoint::Tags(_) => (2, "a/b/tags/list".into()),
        Endpoint::Manifest(..) => (3, "a/b/manifests/v1".into()),
        Endpoint::Blob(..) => (4, format!("a/b/blobs/{digest}")),
        Endpoint::Uploads(_) => (5, "a/b/blobs/uploads/".into()),
        Endpoint::Upload(..) => (6, format!("a/b/blobs/uploads/{}", Uuid::from_u128(7))),
        Endpoint::Referrers(..) => (7, format!("a/b/referrers/{digest}")),
    }
}

#[tokio::test]
async fn every_endpoint_answers_nonsense_with_an_error_of_the_standard() {
    let world = World::new();
    let all = all();
    let paths: Vec<(usize, String)> = all.iter().map(path_of).collect();
    assert_eq!(paths.iter().map(|(number, _)| *number).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    let noise: Vec<u8> = (0..3_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let bodies = [vec![], noise, b"{\"schemaVersion\":2,\"layers\":[null]}".to_vec(), vec![b'['; 50_000]];
    let queries =
        ["", "?digest=sha256:x", "?n=-1&last=%ff", "?mount=x&from=../..", "?n=99999999999999999999&digest="];
    let headers: [&[(&str, &str)]; 3] = [
        &[],
        &[("content-type", IMAGE), ("content-range", "9-1"), ("range", "bytes=5-2,x")],
        &[("content-type", ";;=, "), ("content-range", "0-18446744073709551616"), ("range", "bytes=-")],
    ];
    let mut asked = 0;
    for (named, (_, path)) in all.iter().zip(&paths) {
        assert_eq!(endpoint(path).as_ref(), Ok(named));
        for method in ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "BREW"] {
            for query in queries {
                for headers in headers {
                    for body in &bodies {
                        asked += 1;
                        let line = format!("{method} /v2/{path}{query}");
                        let answer = world.send(&line, headers, body.clone()).await;
                        let status = answer.status;
                        assert!(status < 500 || status == 503, "{line}: {status}");
                        if status >= 400 && method != "HEAD" {
                            assert!(!answer.code().is_empty(), "{line}: {status}");
                        }
                    }
                }
            }
        }
    }
    assert!(asked > 3_000, "{asked}");
    assert_eq!(world.ask("GET /v2/").await.status, 200, "the one that behaves is served");
}
