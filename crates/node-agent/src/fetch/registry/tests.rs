// SPDX-License-Identifier: Apache-2.0

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use model::desired::{ContentSource, RegistrySource};
use model::id::Digest;

use super::*;
use crate::resolve::Dns;

/// A registry on loopback that answers by script, and what it was asked: request line and Authorization.
pub(in crate::fetch) struct Server {
    pub(in crate::fetch) address: String,
    asked: Receiver<(String, Option<String>)>,
}

impl Server {
    /// Each connection is served once: the script gets request line, Authorization and Range.
    pub(in crate::fetch) fn start(
        script: impl Fn(&str, Option<&str>, Option<&str>) -> String + Send + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, asked) = channel();
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (line, headers) = read_request(&stream);
                let find =
                    |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
                let answer = script(&line, find("authorization"), find("range"));
                if sender.send((line, find("authorization").map(Into::into))).is_err() {
                    return;
                }
                let _ = (&stream).write_all(answer.as_bytes());
            }
        });
        Server { address, asked }
    }

    pub(in crate::fetch) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(in crate::fetch) fn asked(&self) -> Vec<(String, Option<String>)> {
        self.asked.try_iter().collect()
    }
}

fn read_request(stream: &TcpStream) -> (String, Vec<(String, String)>) {
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let line = lines.next().unwrap();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.split_once(": ").map(|(key, value)| (key.to_ascii_lowercase(), value.to_string()))
        })
        .collect();
    (line, headers)
}

pub(in crate::fetch) fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn request(base_url: String, object: FetchObject, offset: u64) -> ImageRequest {
    let registry = RegistrySource { base_url, credentials: None, ca_pem: Vec::new() };
    let source = ContentSource { registry, repository: "team/app".into(), reference: "v1".into() };
    ImageRequest { source, object, offset, length: None }
}

fn manifest() -> FetchObject {
    FetchObject::Manifest { reference: "v1".into() }
}

fn blob() -> FetchObject {
    FetchObject::Blob { digest: Digest([0xab; 32]) }
}

fn login() -> Option<Login> {
    Some(Login { user: "joe".into(), password: "pa:ss".into() })
}

pub(in crate::fetch) fn body(opened: Opened) -> String {
    let mut text = String::new();
    let mut body = opened.body;
    body.read_to_string(&mut text).unwrap();
    text
}

fn client() -> Registries {
    Registries::new(Arc::new(Agents::new(Dns::default(), b"")))
}

const JOE: &str = "Basic am9lOnBhOnNz";

#[test]
fn a_manifest_comes_with_its_type_and_size() {
    let server = Server::start(|_, _, _| answer("200 OK", "Content-Type: a/b; charset=utf-8\r\n", "{}"));
    let opened = client().open(&request(server.url(), manifest(), 0), None).unwrap();
    assert_eq!((opened.media_type.as_str(), opened.size, opened.offset), ("a/b", Some(2), 0));
    assert_eq!(body(opened), "{}");
    assert_eq!(server.asked(), [("GET /v2/team/app/manifests/v1 HTTP/1.1".to_string(), None)]);
}

#[test]
fn a_password_is_sent_only_when_asked_for() {
    let server = Server::start(|_, authorization, _| match authorization {
        Some(JOE) => answer("200 OK", "", "ok"),
        _ => answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", ""),
    });
    let fault = client().open(&request(server.url(), manifest(), 0), None).unwrap_err();
    assert_eq!(fault.reason, Reason::RegistryAuthRefused);
    let opened = client().open(&request(server.url(), manifest(), 0), login().as_ref()).unwrap();
    assert_eq!(body(opened), "ok");
    let sent: Vec<_> = server.asked().into_iter().map(|(_, authorization)| authorization).collect();
    assert_eq!(sent, [None, None, Some(JOE.into())]);
}

#[test]
fn a_token_is_fetched_once_and_used_again() {
    let own = std::sync::OnceLock::<String>::new();
    let own = Arc::new(own);
    let realm = own.clone();
    let server = Server::start(move |line, authorization, _| {
        if line.starts_with("GET /token?") {
            return answer("200 OK", "", r#"{"token":"t1","expires_in":300}"#);
        }
        match authorization {
            Some("Bearer t1") => answer("200 OK", "", "ok"),
            _ => {
                let realm = realm.get().unwrap();
                let header = format!(
                    "WWW-Authenticate: Bearer realm=\"{realm}/token\",service=\"s v\",scope=\"repository:team/app:pull\"\r\n"
                );
                answer("401 Unauthorized", &header, "")
            }
        }
    });
    own.set(server.url()).unwrap();
    let client = client();
    for _ in 0..2 {
        let opened = client.open(&request(server.url(), blob(), 0), login().as_ref()).unwrap();
        assert_eq!(body(opened), "ok");
    }
    let asked = server.asked();
    assert_eq!(asked[1].0, "GET /token?scope=repository%3Ateam%2Fapp%3Apull&service=s%20v HTTP/1.1");
    assert_eq!(asked[1].1.as_deref(), Some(JOE));
    assert_eq!(asked.len(), 4);
    // Another user gets no token of joe's.
    let other = Login { user: "ann".into(), password: "x".into() };
    client.open(&request(server.url(), blob(), 0), Some(&other)).unwrap();
    assert_eq!(server.asked()[0].1, None);
}

#[test]
fn a_redirect_to_another_host_takes_no_password_along() {
    let storage = Server::start(|_, _, range| {
        assert_eq!(range, Some("bytes=4-"));
        answer("206 Partial Content", "Content-Range: bytes 4-5/6\r\n", "ef")
    });
    let location =
        format!("Location: http://localhost:{}/data\r\n", storage.address.rsplit(':').next().unwrap());
    let server = Server::start(move |_, authorization, _| match authorization {
        Some(JOE) => answer("307 Temporary Redirect", &location, ""),
        _ => answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", ""),
    });
    let opened = client().open(&request(server.url(), blob(), 4), login().as_ref()).unwrap();
    assert_eq!((opened.offset, opened.size), (4, Some(2)));
    assert_eq!(body(opened), "ef");
    assert_eq!(storage.asked(), [("GET /data HTTP/1.1".to_string(), None)]);
}

#[test]
fn a_registry_that_cannot_resume_begins_anew() {
    let server = Server::start(|_, _, _| answer("200 OK", "", "abcdef"));
    let opened = client().open(&request(server.url(), blob(), 4), None).unwrap();
    assert_eq!((opened.offset, opened.size), (0, Some(6)));
}

#[test]
fn every_refusal_has_its_reason() {
    for (status, reason) in [
        ("404 Not Found", Reason::ImageNotFound),
        ("403 Forbidden", Reason::RegistryAuthRefused),
        ("401 Unauthorized", Reason::RegistryAuthRefused),
        ("429 Too Many Requests", Reason::RegistryUnreachable),
        ("503 Service Unavailable", Reason::RegistryUnreachable),
        ("204 No Content", Reason::RegistryUnreachable),
    ] {
        let server = Server::start(move |_, _, _| answer(status, "", ""));
        let fault = client().open(&request(server.url(), manifest(), 0), None).unwrap_err();
        assert_eq!(fault.reason, reason, "{status}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, reason) in [
        (format!("http://{closed}"), Reason::RegistryUnreachable),
        ("https://name.example".into(), Reason::RegistryUnreachable),
        ("ftp://a".into(), Reason::InvalidConfig),
        ("http://a/b".into(), Reason::InvalidConfig),
        ("http://user@a".into(), Reason::InvalidConfig),
    ] {
        let fault = client().open(&request(url.clone(), manifest(), 0), None).unwrap_err();
        assert_eq!(fault.reason, reason, "{url}: {fault}");
    }
    let tag = FetchObject::Manifest { reference: "a/../b".into() };
    let fault = client().open(&request("http://a".into(), tag, 0), None).unwrap_err();
    assert_eq!(fault.reason, Reason::InvalidConfig);
}

#[test]
fn a_ca_that_cannot_be_read_is_not_ignored() {
    let mut request = request("https://127.0.0.1:1".into(), manifest(), 0);
    request.source.registry.ca_pem = vec!["no pem".into()];
    assert_eq!(client().open(&request, None).unwrap_err().reason, Reason::RegistryUntrusted);
}
