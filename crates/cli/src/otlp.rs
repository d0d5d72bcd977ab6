// SPDX-License-Identifier: Apache-2.0
//! The controller's own log lines on their way to a collector.

use std::fmt::{Debug, Write as _};
use std::time::SystemTime;

use controller::telemetry::otlp::{LogQueue, LogRecord};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Copies every event that the filter lets through into the queue.
pub(crate) struct Export(pub(crate) LogQueue);

impl<S: Subscriber> Layer<S> for Export {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let at_ns = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(0));
        self.0.push(LogRecord {
            at_ns,
            severity: event.metadata().level().as_str().to_ascii_lowercase(),
            body: text.message + &text.fields,
            service: "selvedge-controller",
            attributes: vec![("source", event.metadata().target().to_owned())],
        });
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}
