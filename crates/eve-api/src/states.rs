// SPDX-License-Identifier: Apache-2.0
//! States on both sides of the wire, each pair in one table read both ways.
//!
//! `ZSwState` is not in order of progress, and EVE sends some states under another name: what is loaded goes out as
//! DELIVERED (4), never as LOADED (19). Numbers without a state of ours read as unknown.

use model::report::{AttestationState, DataAtRest, DeviceState, SecurityModule};
use model::status::{SwState, UpdateState, UpdateStep};

use crate::wire::info as wire;

macro_rules! table {
    ($(#[$doc:meta])* $to:ident, $from:ident: $model:ident <-> $wire:ident { $($m:ident = $w:ident),* $(,)? }
        reads { $($also:ident => $as:ident),* $(,)? } else $unknown:ident) => {
        $(#[$doc])*
        pub(crate) fn $to(state: $model) -> i32 {
            match state { $($model::$m => wire::$wire::$w),* }.into()
        }
        pub(crate) fn $from(number: i32) -> $model {
            match wire::$wire::try_from(number) {
                $(Ok(wire::$wire::$w) => $model::$m,)*
                $(Ok(wire::$wire::$also) => $model::$as,)*
                Err(_) => $model::$unknown,
            }
        }
    };
}

table! {
    sw_to_wire, sw_from_wire: SwState <-> ZSwState {
        Unknown = Invalid,
        Initial = Initial,
        ResolvingTag = ResolvingTag,
        ResolvedTag = ResolvedTag,
        Downloading = DownloadStarted,
        Downloaded = Downloaded,
        Verifying = Verifying,
        Verified = Verified,
        Loading = Loading,
        Loaded = Delivered,
        CreatingVolume = CreatingVolume,
        CreatedVolume = CreatedVolume,
        Installed = Installed,
        AwaitNetworkInstance = Awaitnetworkinstance,
        StartDelayed = StartDelayed,
        Booting = Booting,
        Running = Running,
        Restarting = Restarting,
        Purging = Purging,
        Halting = Halting,
        Halted = Halted,
        Failed = Error,
    } reads { Loaded => Loaded, Pending => Initial, Scheduling => Initial } else Unknown
}

table! {
    device_to_wire, device_from_wire: DeviceState <-> ZDeviceState {
        Unknown = ZdeviceStateUnspecified,
        Online = ZdeviceStateOnline,
        Rebooting = ZdeviceStateRebooting,
        Maintenance = ZdeviceStateMaintenanceMode,
        BaseOsUpdating = ZdeviceStateBaseosUpdating,
        Booting = ZdeviceStateBooting,
        PreparingPowerOff = ZdeviceStatePreparingPoweroff,
        PoweringOff = ZdeviceStatePoweringOff,
        PreparedPowerOff = ZdeviceStatePreparedPoweroff,
    } reads {} else Unknown
}

table! {
    attestation_to_wire, attestation_from_wire: AttestationState <-> AttestationState {
        Unknown = Unspecified,
        NonceWait = NonceWait,
        QuoteWait = TpmQuoteWait,
        EscrowWait = TpmEscrowWait,
        AttestWait = AttestWait,
        AttestEscrowWait = AttestEscrowWait,
        RestartWait = RestartWait,
        Complete = Complete,
    } reads {} else Unknown
}

table! {
    module_to_wire, module_from_wire: SecurityModule <-> HwSecurityModuleStatus {
        Unknown = Unknown,
        NotFound = Notfound,
        Disabled = Disabled,
        Enabled = Enabled,
    } reads {} else Unknown
}

table! {
    at_rest_to_wire, at_rest_from_wire: DataAtRest <-> DataSecAtRestStatus {
        Unknown = DatasecAtRestUnknown,
        Disabled = DatasecAtRestDisabled,
        Enabled = DatasecAtRestEnabled,
        Error = DatasecAtRestError,
    } reads {} else Unknown
}

table! {
    update_to_wire, update_from_wire: UpdateState <-> BaseOsStatus {
        None = None,
        Downloading = Downloading,
        Downloaded = DownloadDone,
        Updating = Updating,
        Updated = Updated,
        Fallback = Fallback,
        Failed = Failed,
    } reads {} else None
}

table! {
    step_to_wire, step_from_wire: UpdateStep <-> BaseOsSubStatus {
        None = NoneSubstatus,
        Downloading = DownloadInprogress,
        Verifying = VerifyInprogress,
        Initializing = UpdateInitializing,
        Rebooting = UpdateRebooting,
        Testing = UpdateTesting,
        Confirming = UpdateNeedTestConfirm,
        Deferred = UpdateDeferred,
    } reads {} else None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_states_have_the_numbers_of_eve() {
        use SwState as S;
        let table = [
            (S::Initial, 1),
            (S::ResolvingTag, 12),
            (S::ResolvedTag, 13),
            (S::Downloading, 2),
            (S::Downloaded, 3),
            (S::Verifying, 16),
            (S::Verified, 17),
            (S::Loading, 18),
            (S::Loaded, 4),
            (S::CreatingVolume, 14),
            (S::CreatedVolume, 15),
            (S::Installed, 5),
            (S::AwaitNetworkInstance, 20),
            (S::StartDelayed, 22),
            (S::Booting, 6),
            (S::Running, 7),
            (S::Restarting, 10),
            (S::Purging, 11),
            (S::Halting, 8),
            (S::Halted, 9),
            (S::Failed, 21),
            (S::Unknown, 0),
        ];
        for (state, number) in table {
            assert_eq!(sw_to_wire(state), number, "{state:?}");
            assert_eq!(sw_from_wire(number), state);
        }
        assert_eq!(sw_from_wire(19), S::Loaded);
        assert_eq!(sw_from_wire(99), S::Unknown);
        assert_eq!((module_to_wire(SecurityModule::Enabled), at_rest_to_wire(DataAtRest::Error)), (3, 4));
        assert_eq!(
            (device_to_wire(DeviceState::Online), attestation_to_wire(AttestationState::Complete)),
            (1, 7)
        );
    }
}
