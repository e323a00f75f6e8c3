//! What a token says of itself (C_GetTokenInfo), taken field by field.
//!
//! cryptoki refuses all of it where one field is not as the standard has it (opencryptoki's soft token gives `HH:MM:SS` for the time), and
//! with it the flags that keep a PIN from being tried once too often.

use super::fault::code_of;
use super::module::Inside;
use super::select::plain;
use cryptoki::{error::RvError, slot::Slot};
use cryptoki_sys::{
    CK_FLAGS, CKF_TOKEN_INITIALIZED, CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_INITIALIZED,
    CKF_USER_PIN_LOCKED,
};

/// How near wrong PINs have brought the token to locking itself, by its flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Count {
    Clear,
    /// One or more since the last right one.
    Low,
    /// One more locks it.
    FinalTry,
    Locked,
}

impl Count {
    /// The flag that says so.
    pub(super) const fn flag(self) -> &'static str {
        match self {
            Self::Clear => "none",
            Self::Low => "CKF_USER_PIN_COUNT_LOW",
            Self::FinalTry => "CKF_USER_PIN_FINAL_TRY",
            Self::Locked => "CKF_USER_PIN_LOCKED",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) label: String,
    pub(super) serial: String,
    pub(super) manufacturer: String,
    pub(super) model: String,
    pub(super) flags: CK_FLAGS,
}

impl Told {
    pub(super) const fn has(&self, flag: CK_FLAGS) -> bool {
        self.flags & flag != 0
    }

    pub(super) const fn initialized(&self) -> bool {
        self.has(CKF_TOKEN_INITIALIZED)
    }

    pub(super) const fn user_pin_initialized(&self) -> bool {
        self.has(CKF_USER_PIN_INITIALIZED)
    }

    pub(super) fn count(&self) -> Count {
        let flags = [
            (CKF_USER_PIN_LOCKED, Count::Locked),
            (CKF_USER_PIN_FINAL_TRY, Count::FinalTry),
            (CKF_USER_PIN_COUNT_LOW, Count::Low),
        ];
        flags.into_iter().find(|(flag, _)| self.has(*flag)).map_or(Count::Clear, |(_, count)| count)
    }
}

fn text(field: &[u8]) -> String {
    plain(&String::from_utf8_lossy(field)).to_owned()
}

/// Asks the token in `slot`. A module without a function list of its own (p11-kit's client) is asked through cryptoki, with what that
/// refuses.
pub(super) fn told(inside: &Inside<'_>, slot: Slot) -> Result<Told, RvError> {
    let Some(raw) = inside.raw() else {
        let token = inside.pkcs11().get_token_info(slot).map_err(|error| code_of(&error))?;
        let flags = [
            (token.token_initialized(), CKF_TOKEN_INITIALIZED),
            (token.user_pin_initialized(), CKF_USER_PIN_INITIALIZED),
            (token.user_pin_count_low(), CKF_USER_PIN_COUNT_LOW),
            (token.user_pin_final_try(), CKF_USER_PIN_FINAL_TRY),
            (token.user_pin_locked(), CKF_USER_PIN_LOCKED),
        ];
        return Ok(Told {
            label: plain(token.label()).to_owned(),
            serial: plain(token.serial_number()).to_owned(),
            manufacturer: plain(token.manufacturer_id()).to_owned(),
            model: plain(token.model()).to_owned(),
            flags: flags.into_iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag),
        });
    };
    let info = raw.token_info(slot).map_err(|error| code_of(&error))?;
    Ok(Told {
        label: text(&{ info.label }),
        serial: text(&{ info.serialNumber }),
        manufacturer: text(&{ info.manufacturerID }),
        model: text(&{ info.model }),
        flags: info.flags,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_flag_counts() {
        let told = |flags| Told {
            label: String::new(),
            serial: String::new(),
            manufacturer: String::new(),
            model: String::new(),
            flags,
        };
        assert_eq!(told(CKF_TOKEN_INITIALIZED).count(), Count::Clear);
        assert_eq!(told(CKF_USER_PIN_COUNT_LOW).count(), Count::Low);
        assert_eq!(told(CKF_USER_PIN_COUNT_LOW | CKF_USER_PIN_FINAL_TRY).count(), Count::FinalTry);
        assert_eq!(told(CKF_USER_PIN_COUNT_LOW | CKF_USER_PIN_LOCKED).count(), Count::Locked);
        assert!(Count::Clear < Count::Low && Count::Low < Count::FinalTry && Count::FinalTry < Count::Locked);
    }

    #[test]
    fn fields_are_read_however_they_are_padded() {
        for field in [&b"token   "[..], b"token\0\0\0", b"token  \0", b"token\0 x", b" token \0"] {
            assert_eq!(text(field), "token", "{field:?}");
        }
        assert_eq!(text(b"two words "), "two words");
        assert_eq!(text(&[0; 32]), "");
    }
}
