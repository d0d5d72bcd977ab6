// SPDX-License-Identifier: Apache-2.0
//! Stands in place of a service in an image that shall not pass its test: it ends as soon as it was started.

fn main() {
    println!("this program only ends");
}
