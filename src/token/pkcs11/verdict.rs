//! From return code to verdict: pure functions, and the only place where a code's meaning is decided.
//!
//! The first code is a hint. [`class`] says what it points to, the session is dropped, the call is tried once more on
//! a new one, and what diagnosis then finds out ([`Facts`]) decides together with the last code: [`conclude`].

use crate::token::Verdict;
use cryptoki::error::RvError;

/// What a return code alone points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The token says no.
    Denied,
    /// The session or a handle went stale: a new session may help.
    Retry,
    /// The token does not answer, or answers that it cannot. Re-initialising may help.
    Unreachable,
    /// The bytes are refused.
    BadRecord,
    /// The set-up cannot work.
    Misconfigured,
    /// Only a restart helps.
    Fatal,
}

/// Whether a record that is known to be good still unwraps, asked after another was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Good {
    /// Nothing was asked, or nothing could be.
    #[default]
    Unknown,
    /// The KEK works: what was refused is the record's own fault.
    Unwraps,
    /// A record that unwrapped before is refused, yet a fresh one makes the round trip, or an attribute that nobody can change on a key
    /// is not what it was: this is another key.
    AnotherKey,
    /// Neither works.
    Refused,
}

/// What diagnosis found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// The token is listed.
    pub(super) listed: Option<bool>,
    /// The KEK is found on the token, listed and logged in. `None` where no KEK is concerned or nobody looked.
    pub(super) kek_found: Option<bool>,
    /// A known good record.
    pub(super) good: Good,
    /// The attribute that tells another key, where it is [`Good::AnotherKey`] and one does.
    pub(super) differs_in: Option<&'static str>,
    /// This KEK has unwrapped a record before, in this process.
    pub(super) worked_before: bool,
}

/// Whether the session is gone, and perhaps every one: its number may be somebody else's by now, and what was found before means
/// nothing any more.
pub(super) const fn is_lost_session(code: RvError) -> bool {
    matches!(code, RvError::SessionHandleInvalid | RvError::SessionClosed | RvError::CryptokiNotInitialized)
}

/// What the code points to. Total: codes that no version of the standard knows, and vendors' own, are unreachable.
pub(super) const fn class(code: RvError) -> Class {
    use RvError as Rv;
    match code {
        Rv::KeyFunctionNotPermitted
        | Rv::FunctionRejected
        | Rv::ActionProhibited
        | Rv::PinIncorrect
        | Rv::PinInvalid
        | Rv::PinLenRange
        | Rv::PinExpired
        | Rv::PinLocked
        | Rv::PinTooWeak
        | Rv::UserPinNotInitialized
        | Rv::KeyTypeInconsistent
        | Rv::UnwrappingKeyTypeInconsistent
        | Rv::WrappingKeyTypeInconsistent => Class::Denied,

        Rv::ObjectHandleInvalid
        | Rv::KeyHandleInvalid
        | Rv::UnwrappingKeyHandleInvalid
        | Rv::WrappingKeyHandleInvalid
        | Rv::SessionHandleInvalid
        | Rv::SessionClosed
        | Rv::UserNotLoggedIn
        | Rv::OperationActive
        | Rv::OperationNotInitialized
        | Rv::KeyChanged
        | Rv::SessionCount => Class::Retry,

        Rv::EncryptedDataInvalid
        | Rv::EncryptedDataLenRange
        | Rv::WrappedKeyInvalid
        | Rv::WrappedKeyLenRange
        | Rv::DataInvalid
        | Rv::DataLenRange => Class::BadRecord,

        Rv::MechanismInvalid
        | Rv::MechanismParamInvalid
        | Rv::ArgumentsBad
        | Rv::TemplateIncomplete
        | Rv::TemplateInconsistent
        | Rv::AttributeReadOnly
        | Rv::AttributeSensitive
        | Rv::AttributeTypeInvalid
        | Rv::AttributeValueInvalid
        | Rv::FunctionNotSupported
        | Rv::KeySizeRange
        | Rv::UnwrappingKeySizeRange
        | Rv::WrappingKeySizeRange
        | Rv::KeyNotWrappable
        | Rv::KeyUnextractable
        | Rv::SessionReadOnly
        | Rv::TokenWriteProtected
        | Rv::UserTypeInvalid
        | Rv::BufferTooSmall => Class::Misconfigured,

        Rv::CantLock | Rv::NeedToCreateThreads | Rv::MutexBad | Rv::FipsSelfTestFailed | Rv::LibraryLoadFailed => {
            Class::Fatal
        }

        _ => Class::Unreachable,
    }
}

/// What the code of a C_Login that failed says of the PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    /// Somebody in the process has logged in: no PIN was compared.
    AlreadyIn,
    /// The token has no user PIN to compare with.
    NoPin,
    /// No PIN was compared: the session or the token is gone, there is no memory, or somebody else is logged in.
    NotCompared,
    /// This PIN is wrong.
    WrongPin,
    /// The token lets nobody in, whatever this PIN is: it may be the right one once the token is unlocked.
    Denied,
    /// It may be the PIN, or the token.
    Unclear,
}

/// What the code of a C_Login that failed says.
pub(super) const fn login(code: RvError) -> Login {
    use RvError as Rv;
    match code {
        Rv::UserAlreadyLoggedIn => Login::AlreadyIn,
        Rv::UserPinNotInitialized => Login::NoPin,
        Rv::UserAnotherAlreadyLoggedIn | Rv::UserTooManyTypes => Login::NotCompared,
        Rv::DeviceRemoved | Rv::TokenNotPresent | Rv::HostMemory => Login::NotCompared,
        Rv::PinIncorrect | Rv::PinInvalid | Rv::PinLenRange | Rv::PinTooWeak => Login::WrongPin,
        code if is_lost_session(code) => Login::NotCompared,
        code if matches!(class(code), Class::Denied) => Login::Denied,
        _ => Login::Unclear,
    }
}

/// True for the codes by which some tokens refuse a corrupt record (SoftHSM and kryoptic do).
const fn may_hide_a_bad_record(code: RvError) -> bool {
    matches!(code, RvError::GeneralError | RvError::DeviceError | RvError::FunctionFailed)
}

/// The verdict on a call that failed on a new session with a freshly found key, in the light of `facts`.
pub(super) const fn conclude(code: RvError, facts: Facts) -> Verdict {
    let class = class(code);
    if matches!(class, Class::Fatal) {
        return Verdict::Fatal;
    }
    if matches!(facts.listed, Some(false)) {
        return Verdict::Unreachable;
    }
    if matches!(facts.kek_found, Some(false)) {
        return Verdict::Denied;
    }
    if matches!(facts.good, Good::AnotherKey) {
        return Verdict::Replaced;
    }
    let kek_works = matches!(facts.good, Good::Unwraps);
    match class {
        Class::Denied => Verdict::Denied,
        // On a freshly found key of a listed token these say that the key is no longer one for this.
        Class::Retry
            if matches!(code, RvError::UnwrappingKeyHandleInvalid | RvError::WrappingKeyHandleInvalid)
                && matches!(facts.kek_found, Some(true)) =>
        {
            Verdict::Denied
        }
        // A record that is known to be good is refused as well, and so is a fresh one: not this record's fault alone. Whatever
        // refused them, an outage that began in between perhaps, is bounded by grace; a denial would wipe at once.
        Class::BadRecord if matches!(facts.good, Good::Refused) => Verdict::Unreachable,
        Class::BadRecord => Verdict::BadRecord,
        // A parameter of the record (its IV, say) that the token cannot take.
        Class::Misconfigured if kek_works => Verdict::BadRecord,
        Class::Misconfigured if facts.worked_before => Verdict::Denied,
        Class::Misconfigured => Verdict::Misconfigured,
        Class::Unreachable if kek_works && may_hide_a_bad_record(code) => Verdict::BadRecord,
        Class::Retry | Class::Unreachable | Class::Fatal => Verdict::Unreachable,
    }
}

/// The name of a code as PKCS#11 writes it.
pub(super) fn name(code: RvError) -> String {
    match code {
        RvError::VendorDefined(value) => format!("CKR_VENDOR_DEFINED 0x{value:08x}"),
        RvError::UnknownErrorCode(value) => format!("return code 0x{value:08x}"),
        known => {
            // `KeyFunctionNotPermitted` is CKR_KEY_FUNCTION_NOT_PERMITTED.
            let mut name = String::from("CKR");
            for letter in format!("{known:?}").chars() {
                if letter.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(letter.to_ascii_uppercase());
            }
            name
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RvError as Rv;

    fn found() -> Facts {
        Facts { listed: Some(true), kek_found: Some(true), ..Facts::default() }
    }

    fn with_good(good: Good) -> Facts {
        Facts { good, worked_before: true, ..found() }
    }

    #[test]
    fn row_denied() {
        for code in [
            Rv::KeyFunctionNotPermitted,
            Rv::FunctionRejected,
            Rv::ActionProhibited,
            Rv::PinIncorrect,
            Rv::PinLocked,
            Rv::PinExpired,
            Rv::PinInvalid,
            Rv::PinLenRange,
            Rv::UserPinNotInitialized,
            Rv::KeyTypeInconsistent,
        ] {
            assert_eq!(class(code), Class::Denied, "{code:?}");
            assert_eq!(conclude(code, found()), Verdict::Denied, "{code:?}");
        }
        for code in [Rv::UnwrappingKeyHandleInvalid, Rv::WrappingKeyHandleInvalid] {
            assert_eq!(conclude(code, found()), Verdict::Denied, "with a freshly found key: {code:?}");
        }
    }

    #[test]
    fn row_denied_when_the_kek_is_gone_from_a_listed_token() {
        let gone = Facts { kek_found: Some(false), ..found() };
        for code in [Rv::ObjectHandleInvalid, Rv::GeneralError, Rv::KeyHandleInvalid, Rv::UnwrappingKeyHandleInvalid] {
            assert_eq!(conclude(code, gone), Verdict::Denied, "{code:?}");
        }
    }

    #[test]
    fn row_retry_once_on_a_new_session() {
        for code in [
            Rv::ObjectHandleInvalid,
            Rv::KeyHandleInvalid,
            Rv::UnwrappingKeyHandleInvalid,
            Rv::WrappingKeyHandleInvalid,
            Rv::SessionHandleInvalid,
            Rv::SessionClosed,
            Rv::UserNotLoggedIn,
            Rv::OperationActive,
            Rv::OperationNotInitialized,
            Rv::KeyChanged,
            Rv::SessionCount,
        ] {
            assert_eq!(class(code), Class::Retry, "{code:?}");
        }
        // What the new session does not cure is not a denial: the token has not said no.
        for code in [Rv::SessionHandleInvalid, Rv::SessionClosed, Rv::OperationActive, Rv::SessionCount] {
            assert_eq!(conclude(code, found()), Verdict::Unreachable, "{code:?}");
        }
    }

    #[test]
    fn row_unreachable() {
        for code in [
            Rv::DeviceError,
            Rv::DeviceRemoved,
            Rv::DeviceMemory,
            Rv::TokenNotPresent,
            Rv::TokenNotRecognized,
            Rv::SlotIdInvalid,
            Rv::GeneralError,
            Rv::FunctionFailed,
            Rv::FunctionCanceled,
            Rv::HostMemory,
            Rv::CryptokiNotInitialized,
            Rv::VendorDefined(0x8000_0001),
            Rv::UnknownErrorCode(0x7777),
        ] {
            assert_eq!(class(code), Class::Unreachable, "{code:?}");
            assert_eq!(conclude(code, found()), Verdict::Unreachable, "{code:?}");
            assert_eq!(conclude(code, with_good(Good::Refused)), Verdict::Unreachable, "{code:?}");
        }
    }

    #[test]
    fn row_unreachable_when_the_token_is_not_listed_whatever_the_code_and_the_find_say() {
        let unlisted = Facts { listed: Some(false), kek_found: Some(false), ..Facts::default() };
        for code in [Rv::ObjectHandleInvalid, Rv::KeyFunctionNotPermitted, Rv::GeneralError, Rv::PinIncorrect] {
            assert_eq!(conclude(code, unlisted), Verdict::Unreachable, "{code:?}");
        }
    }

    #[test]
    fn row_bad_record() {
        for code in [
            Rv::EncryptedDataInvalid,
            Rv::EncryptedDataLenRange,
            Rv::WrappedKeyInvalid,
            Rv::WrappedKeyLenRange,
            Rv::DataInvalid,
            Rv::DataLenRange,
        ] {
            assert_eq!(class(code), Class::BadRecord, "{code:?}");
            assert_eq!(conclude(code, with_good(Good::Unwraps)), Verdict::BadRecord, "{code:?}");
            assert_eq!(conclude(code, found()), Verdict::BadRecord, "{code:?}");
            assert_eq!(conclude(code, with_good(Good::Refused)), Verdict::Unreachable, "{code:?}");
        }
        for code in [Rv::GeneralError, Rv::DeviceError, Rv::FunctionFailed] {
            assert_eq!(conclude(code, with_good(Good::Unwraps)), Verdict::BadRecord, "{code:?}");
        }
        for code in [Rv::DeviceRemoved, Rv::HostMemory, Rv::VendorDefined(1)] {
            assert_eq!(conclude(code, with_good(Good::Unwraps)), Verdict::Unreachable, "{code:?}");
        }
        assert_eq!(conclude(Rv::MechanismParamInvalid, with_good(Good::Unwraps)), Verdict::BadRecord);
    }

    #[test]
    fn row_misconfigured_and_denied_if_it_worked_before() {
        for code in [
            Rv::MechanismInvalid,
            Rv::MechanismParamInvalid,
            Rv::ArgumentsBad,
            Rv::TemplateIncomplete,
            Rv::TemplateInconsistent,
            Rv::AttributeReadOnly,
            Rv::AttributeSensitive,
            Rv::AttributeTypeInvalid,
            Rv::AttributeValueInvalid,
            Rv::FunctionNotSupported,
            Rv::KeySizeRange,
            Rv::SessionReadOnly,
            Rv::BufferTooSmall,
        ] {
            assert_eq!(class(code), Class::Misconfigured, "{code:?}");
            assert_eq!(conclude(code, found()), Verdict::Misconfigured, "{code:?}");
            assert_eq!(conclude(code, with_good(Good::Refused)), Verdict::Denied, "{code:?}");
        }
    }

    #[test]
    fn row_another_key_under_the_same_id_is_denied() {
        for code in [Rv::EncryptedDataInvalid, Rv::GeneralError, Rv::DeviceError] {
            assert_eq!(conclude(code, with_good(Good::AnotherKey)), Verdict::Replaced, "{code:?}");
        }
    }

    #[test]
    fn row_fatal() {
        for code in [Rv::CantLock, Rv::NeedToCreateThreads, Rv::MutexBad, Rv::FipsSelfTestFailed] {
            assert_eq!(class(code), Class::Fatal, "{code:?}");
            assert_eq!(conclude(code, Facts { listed: Some(false), ..Facts::default() }), Verdict::Fatal, "{code:?}");
        }
    }

    #[test]
    fn only_a_code_that_says_so_calls_a_pin_wrong() {
        let wrong = [Rv::PinIncorrect, Rv::PinInvalid, Rv::PinLenRange, Rv::PinTooWeak];
        wrong.iter().for_each(|code| assert_eq!(login(*code), Login::WrongPin, "{code:?}"));
        for code in [Rv::PinLocked, Rv::PinExpired, Rv::FunctionRejected, Rv::ActionProhibited] {
            assert_eq!(login(code), Login::Denied, "{code:?}");
        }
        for code in [Rv::GeneralError, Rv::DeviceError, Rv::FunctionFailed, Rv::VendorDefined(1), Rv::UserNotLoggedIn] {
            assert_eq!(login(code), Login::Unclear, "{code:?}");
        }
        for code in [
            Rv::SessionHandleInvalid,
            Rv::CryptokiNotInitialized,
            Rv::UserAnotherAlreadyLoggedIn,
            Rv::DeviceRemoved,
            Rv::TokenNotPresent,
            Rv::HostMemory,
        ] {
            assert_eq!(login(code), Login::NotCompared, "{code:?}");
        }
        assert_eq!(login(Rv::UserAlreadyLoggedIn), Login::AlreadyIn);
        assert_eq!(login(Rv::UserPinNotInitialized), Login::NoPin);
    }

    #[test]
    fn codes_are_named_as_the_standard_writes_them() {
        assert_eq!(name(Rv::KeyFunctionNotPermitted), "CKR_KEY_FUNCTION_NOT_PERMITTED");
        assert_eq!(name(Rv::SlotIdInvalid), "CKR_SLOT_ID_INVALID");
        assert_eq!(name(Rv::VendorDefined(0x8000_0001)), "CKR_VENDOR_DEFINED 0x80000001");
    }
}
