// SPDX-License-Identifier: Apache-2.0
//! Client of plain web servers: one file by its URL (RFC 9110), with Basic credentials and resuming by range.
//!
//! It trusts nothing it passes on: whoever reads the bytes verifies them.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipc::calls::FileRequest;
use model::reason::{Fault, Reason};
use ureq::http::Response;
use ureq::{Agent, Body};

use super::client::{Agents, Login, Opened, SERVER, fault_of, range, range_start};

/// The client.
#[derive(Debug)]
pub struct Files {
    agents: Arc<Agents>,
}

impl Files {
    pub fn new(agents: Arc<Agents>) -> Files {
        Files { agents }
    }

    /// Asks for a file from an offset. The password goes to the server of the URL and no further.
    pub fn open(&self, request: &FileRequest, login: Option<&Login>) -> Result<Opened, Fault> {
        let url = request.source.url.as_str();
        let invalid = || Fault::new(Reason::InvalidConfig, format!("{url:?} is no URL of a file"));
        let (scheme, rest) = url.split_once("://").ok_or_else(invalid)?;
        let (authority, _) = rest.split_once('/').ok_or_else(invalid)?;
        // Credentials inside a URL would end in messages.
        let is_plain = |text: &str| text.bytes().all(|c| c.is_ascii_graphic() && !b"#@\\".contains(&c));
        if !matches!(scheme, "http" | "https") || authority.is_empty() || !is_plain(rest) {
            return Err(invalid());
        }
        let agent = self.agents.get(&format!("{scheme}://{authority}"), &request.source.ca_pem, &SERVER)?;
        let mut offset = request.offset;
        let mut answer = ask(&agent, url, login, (offset, request.length))?;
        // What is there is as long as the whole, or longer: it is of another file.
        if answer.status().as_u16() == 416 && offset > 0 {
            offset = 0;
            answer = ask(&agent, url, login, (offset, request.length))?;
        }
        opened(url, answer, offset)
    }
}

fn ask(
    agent: &Agent,
    url: &str,
    login: Option<&Login>,
    (offset, length): (u64, Option<u64>),
) -> Result<Response<Body>, Fault> {
    let mut ask = agent.get(url);
    if let Some(range) = range(offset, length) {
        ask = ask.header("range", range);
    }
    if let Some(login) = login {
        let basic = STANDARD.encode(format!("{}:{}", login.user, login.password));
        ask = ask.header("authorization", format!("Basic {basic}"));
    }
    ask.call().map_err(|error| fault_of(&error, url, &SERVER))
}

fn opened(url: &str, answer: Response<Body>, asked_offset: u64) -> Result<Opened, Fault> {
    let unreachable =
        |what: String| Err(Fault::new(Reason::DatastoreUnreachable, format!("{url}: the server {what}")));
    let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let offset = match answer.status().as_u16() {
        200 => 0,
        206 => match header("content-range").and_then(range_start) {
            Some(offset) if offset <= asked_offset => offset,
            _ => return unreachable("sent another part than asked for".into()),
        },
        404 | 410 => {
            return Err(Fault::new(Reason::FileNotFound, format!("{url} is not on the server")));
        }
        401 | 403 => {
            let message = format!("{url}: the server refused the login");
            return Err(Fault::new(Reason::DatastoreAuthRefused, message));
        }
        status => return unreachable(format!("answered {status}")),
    };
    let media_type = header("content-type").unwrap_or("").split(';').next().unwrap_or("").trim().to_string();
    let size = header("content-length").and_then(|text| text.parse().ok());
    Ok(Opened { media_type, size, offset, body: Box::new(answer.into_body().into_reader()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::registry::tests::{Server, answer, body};
    use crate::resolve::Dns;
    use model::desired::FileSource;

    fn files() -> Files {
        Files::new(Arc::new(Agents::new(Dns::default(), b"")))
    }

    fn request(url: String, offset: u64) -> FileRequest {
        let source = FileSource { url, credentials: None, ca_pem: Vec::new() };
        FileRequest { source, offset, length: None }
    }

    fn login() -> Option<Login> {
        Some(Login { user: "joe".into(), password: "pa:ss".into() })
    }

    #[test]
    fn a_file_comes_from_the_offset_with_its_credentials() {
        let server = Server::start(|_, authorization, range| {
            assert_eq!(authorization, Some("Basic am9lOnBhOnNz"));
            match range {
                Some("bytes=4-") => answer("206 Partial Content", "Content-Range: bytes 4-5/6\r\n", "ef"),
                _ => answer("200 OK", "", "abcdef"),
            }
        });
        let url = format!("{}/dir/a%20file?x=1", server.url());
        let opened = files().open(&request(url.clone(), 0), login().as_ref()).unwrap();
        assert_eq!((opened.offset, opened.size), (0, Some(6)));
        let opened = files().open(&request(url, 4), login().as_ref()).unwrap();
        assert_eq!((opened.offset, opened.size), (4, Some(2)));
        assert_eq!(body(opened), "ef");
        assert_eq!(server.asked()[0].0, "GET /dir/a%20file?x=1 HTTP/1.1");
    }

    #[test]
    fn a_part_of_a_file_is_asked_for_as_one() {
        let server = Server::start(|_, _, range| match range {
            Some("bytes=0-1") => answer("206 Partial Content", "Content-Range: bytes 0-1/6\r\n", "ab"),
            Some("bytes=2-4") => answer("206 Partial Content", "Content-Range: bytes 2-4/6\r\n", "cde"),
            other => panic!("{other:?}"),
        });
        for (offset, length, text) in [(0, 2, "ab"), (2, 3, "cde")] {
            let request =
                FileRequest { length: Some(length), ..request(format!("{}/f", server.url()), offset) };
            let opened = files().open(&request, None).unwrap();
            assert_eq!((opened.offset, opened.size), (offset, Some(length)));
            assert_eq!(body(opened), text);
        }
    }

    #[test]
    fn an_offset_behind_the_end_begins_anew() {
        let server = Server::start(|_, _, range| match range {
            Some(_) => answer("416 Range Not Satisfiable", "Content-Range: bytes */3\r\n", ""),
            None => answer("200 OK", "", "abc"),
        });
        let opened = files().open(&request(format!("{}/f", server.url()), 9), None).unwrap();
        assert_eq!((opened.offset, opened.size), (0, Some(3)));
    }

    #[test]
    fn redirects_are_few_and_take_no_password_along() {
        let storage = Server::start(|_, authorization, _| {
            assert_eq!(authorization, None);
            answer("200 OK", "", "ok")
        });
        let port = storage.address.rsplit(':').next().unwrap().to_owned();
        let server = Server::start(move |line, _, _| {
            let to =
                if line.contains("/loop") { "/loop".into() } else { format!("http://localhost:{port}/d") };
            answer("302 Found", &format!("Location: {to}\r\n"), "")
        });
        let opened = files().open(&request(format!("{}/f", server.url()), 0), login().as_ref()).unwrap();
        assert_eq!(body(opened), "ok");
        let fault = files().open(&request(format!("{}/loop", server.url()), 0), None).unwrap_err();
        assert_eq!(fault.reason, Reason::DatastoreUnreachable);
        assert!(server.asked().len() <= 8, "followed without end");
    }

    #[test]
    fn every_refusal_has_its_reason() {
        for (status, reason) in [
            ("404 Not Found", Reason::FileNotFound),
            ("403 Forbidden", Reason::DatastoreAuthRefused),
            ("401 Unauthorized", Reason::DatastoreAuthRefused),
            ("500 Internal Server Error", Reason::DatastoreUnreachable),
        ] {
            let server = Server::start(move |_, _, _| answer(status, "", ""));
            let fault = files().open(&request(format!("{}/f", server.url()), 0), None).unwrap_err();
            assert_eq!(fault.reason, reason, "{status}");
        }
        for url in ["ftp://a/b", "http://a", "http:///x", "http://me@a/b", "http://a/b c", "x"] {
            let fault = files().open(&request(url.into(), 0), None).unwrap_err();
            assert_eq!(fault.reason, Reason::InvalidConfig, "{url}");
        }
        let mut request = request("https://127.0.0.1:1/f".into(), 0);
        request.source.ca_pem = vec!["no pem".into()];
        assert_eq!(files().open(&request, None).unwrap_err().reason, Reason::DatastoreUntrusted);
    }
}
