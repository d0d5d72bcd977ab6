// SPDX-License-Identifier: Apache-2.0
//! Both ends of a call: [`Caller`] asks and waits, [`IncomingCall`] is a question to be answered, now or later.

use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ipc::boot::CallFrame;
use ipc::calls::Call;
use ipc::frame::{Channel, FrameError};

use crate::control::{Control, Line};

/// An answer waits at most this long for an asker that does not read: askers wait for their answer, so a longer wait
/// means a broken one.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("the manifest does not allow to call {callee}")]
    NotAllowed { callee: &'static str },
    #[error("{callee} did not answer in time")]
    TimedOut { callee: &'static str },
    #[error("the call to {callee} failed")]
    Frame { callee: &'static str, source: FrameError },
    #[error("the process is being stopped")]
    Stopping,
}

/// Asks one other process; may be used from any thread.
pub struct Caller<C> {
    control: Arc<Control>,
    line: Arc<Line>,
    call: PhantomData<fn() -> C>,
}

impl<C> Clone for Caller<C> {
    fn clone(&self) -> Self {
        Caller { control: self.control.clone(), line: self.line.clone(), call: PhantomData }
    }
}

impl<C: Call> std::fmt::Debug for Caller<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Caller({})", C::CALLEE)
    }
}

impl<C: Call> Caller<C> {
    pub(crate) fn new(control: &Arc<Control>) -> Caller<C> {
        Caller { control: control.clone(), line: control.line(C::CALLEE), call: PhantomData }
    }

    /// Asks and waits for the answer; asks again when the callee was restarted meanwhile.
    pub fn call(
        &self,
        req: &C::Request,
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<(C::Reply, Vec<OwnedFd>), CallError> {
        let callee = C::CALLEE;
        let failed = |source| CallError::Frame { callee, source };
        let body = postcard::to_allocvec(req).map_err(|e| failed(e.into()))?;
        let (answer, fds) = self.line.call(&self.control, callee, &body, fds, timeout)?;
        let answer = postcard::from_bytes(&answer).map_err(|e| failed(e.into()))?;
        Ok((answer, fds))
    }
}

/// A question of another process. Owned: the answer may be given later; none is given when it is dropped.
#[derive(Debug)]
pub struct IncomingCall {
    from: String,
    key: String,
    id: u64,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
    channel: Arc<Channel>,
}

impl IncomingCall {
    /// The next question of a channel, if there is one.
    pub fn receive(
        from: &str,
        key: &str,
        channel: &Arc<Channel>,
    ) -> Result<Option<IncomingCall>, FrameError> {
        let Some((payload, fds)) = channel.try_recv_payload()? else { return Ok(None) };
        let bytes = payload.bytes()?;
        let frame: CallFrame<'_> = postcard::from_bytes(&bytes)?;
        Ok(Some(IncomingCall {
            from: from.to_string(),
            key: key.to_string(),
            id: frame.id,
            body: frame.body.into_owned(),
            fds,
            channel: channel.clone(),
        }))
    }

    /// Name of the service that asks.
    pub fn from(&self) -> &str {
        &self.from
    }

    /// Which one of them: the app id where a shim asks, else empty.
    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn decode<C: Call>(&self) -> Result<C::Request, FrameError> {
        Ok(postcard::from_bytes(&self.body)?)
    }

    pub fn fds(&self) -> &[OwnedFd] {
        &self.fds
    }

    pub fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }

    /// Answers. An error means that the asker is gone; it asks again if it still wants to know.
    pub fn reply<C: Call>(self, reply: &C::Reply, fds: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
        let body = postcard::to_allocvec(reply)?;
        let sent = self.channel.send(&CallFrame { id: self.id, body: body.into() }, fds, REPLY_TIMEOUT);
        if matches!(sent, Err(FrameError::TimedOut)) {
            // Someone who asks without end and never takes an answer: others must not wait for him a second time.
            self.channel.shut();
        }
        sent
    }
}
