// SPDX-License-Identifier: Apache-2.0
//! Numbers that several processes must agree on.

/// First host uid and gid of the range that unpacked layers and apps live in: container id 0 is this one.
pub const APP_UID_BASE: u32 = 1_000_000;
/// Ids in that range.
pub const APP_UID_COUNT: u32 = 65_536;
/// Service uids of manifests lie in this range; uid and gid are the same number.
pub const SERVICE_UIDS: core::ops::RangeInclusive<u32> = 900_001..=900_999;

/// Bytes of a frame that travel in the packet itself; more goes into a sealed memfd. Fits the smallest default
/// send buffer of a Unix socket with room for the bookkeeping of the kernel.
pub const MAX_INLINE_BYTES: usize = 64 * 1024;
/// Bytes of the largest value any channel carries: the largest device config that is accepted fits with room.
pub const MAX_VALUE_BYTES: usize = 8 * 1024 * 1024;
/// File descriptors that may travel with one frame, the memfd of a large value not counted.
pub const MAX_FRAME_FDS: usize = 16;
/// Keys of one topic: apps and volumes of the largest device stay far below it.
pub const MAX_TOPIC_KEYS: usize = 4096;
/// What all topics of one writer may cost the bus: ten of them fill most of the memory its manifest gives it, so that a
/// writer that went mad cannot take the bus from the others.
pub const MAX_WRITER_BYTES: usize = 8 * 1024 * 1024;
/// What a key costs besides its letters and its value.
pub const KEY_COST_BYTES: usize = 256;
/// What a large value costs the bus: its pages are its writer's, but the bus has 4,096 descriptors for all.
pub const MEMFD_COST_BYTES: usize = 64 * 1024;
/// Bytes of a key.
pub const MAX_KEY_BYTES: usize = 256;
/// Bytes of one log line; longer ones are cut and say so.
pub const MAX_LOG_LINE_BYTES: usize = 8 * 1024;
