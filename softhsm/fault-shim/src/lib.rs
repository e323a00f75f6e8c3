//! A PKCS#11 module in front of another, which fails as a control file says. For tests only.
//!
//! It copies the real module's function list (version 2.40), puts itself in front of the entries, and exports
//! `C_GetFunctionList` alone. The real module is named by `KEYLEASH_SHIM_MODULE`, the control file by
//! `KEYLEASH_SHIM_CONTROL`; both are read when the shim is loaded. `softhsm/with-token --shim COMMAND…` sets all that up.
//!
//! With `KEYLEASH_SHIM_PARAMETERS`, C_Initialize is given this text as its parameters, which NSS's library needs and callers of other
//! modules do not know of.
//!
//! # The control file
//!
//! It is read anew on each call, so replace it by a rename, lest half of it be read. While it is not there, or empty, nothing
//! fails. Each line is a fault: a function, or `*` for every one, and what happens to calls of it:
//!
//! | word | what happens |
//! | --- | --- |
//! | `rv=0x30` | the call returns this code (hexadecimal or decimal); the real module is not called |
//! | `delay=250ms`, `delay=3s` | the call takes this much longer; then the code is returned or the module called |
//! | `hang` | the call hangs until the control file changes; then the code is returned or the module called |
//! | `crash` | the process aborts, after any delay |
//! | `wrong-plaintext` | the module is called, and one bit of what C_Decrypt, or C_GetAttributeValue for CKA_VALUE, gives is flipped |
//! | `oaep-sha1` | C_EncryptInit and C_DecryptInit with CKM_RSA_PKCS_OAEP are called with SHA-1, whatever was asked for: no fault, but a way to use `rsa-oaep-sha256` on SoftHSM, which knows SHA-1 alone |
//! | `nothing` | C_FindObjects finds nothing; the module is not called |
//! | `flags=0x20000` | C_GetTokenInfo has these flags besides the module's |
//! | `odd-time` | C_GetTokenInfo has a clock that says `HH:MM:SS`, as opencryptoki's has |
//! | `nul-padding` | C_GetTokenInfo pads label and serial number with NUL |
//! | `after=2` | the first two calls pass |
//! | `count=3` | three calls fail; further ones pass |
//! | `this-context` | only calls until the next C_Initialize fail; when C_Initialize is the first call that meets the new content, those after it |
//!
//! `C_Decrypt after=2 rv=0x30 count=3` lets two calls pass, fails three and lets all others pass. The first line that has something
//! to say about a call decides; a line counts the calls that reach it. Counting begins anew whenever the file's content
//! changes (a comment will do) and in each process. `#` begins a comment.
//!
//! A file that cannot be understood makes every call return 0x80004B4C (vendor defined, `KL`) and is told once on standard error.

mod control;
mod front;

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CKR_ARGUMENTS_BAD, CKR_GENERAL_ERROR, CKR_OK};
use std::{ffi::CString, os::unix::ffi::OsStringExt, sync::OnceLock};

/// The real module's functions, and the list with ours in front of them.
struct Lists {
    real: CK_FUNCTION_LIST,
    patched: CK_FUNCTION_LIST,
}

static LISTS: OnceLock<Result<Lists, String>> = OnceLock::new();

fn load() -> Result<Lists, String> {
    let path =
        std::env::var_os("KEYLEASH_SHIM_MODULE").ok_or("KEYLEASH_SHIM_MODULE is not set: name the real module")?;
    // SAFETY: dlopen runs the real module's initialisers, as whoever loads that module without the shim would have it.
    let library =
        unsafe { cryptoki_sys::Pkcs11::new(&path) }.map_err(|error| format!("{}: {error}", path.display()))?;
    let Ok(get) = &library.C_GetFunctionList else {
        return Err(format!("{}: it has no C_GetFunctionList", path.display()));
    };
    if std::ptr::fn_addr_eq(*get, C_GetFunctionList as unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV) {
        return Err("KEYLEASH_SHIM_MODULE names the shim itself".into());
    }
    let mut list = std::ptr::null_mut();
    // SAFETY: the symbol is the module's C_GetFunctionList, which writes one pointer to where it is told.
    let code = unsafe { get(&raw mut list) };
    if code != CKR_OK || list.is_null() {
        return Err(format!("{}: C_GetFunctionList returned {code:#x}", path.display()));
    }
    // SAFETY: the call succeeded, so the pointer is to the module's function list, static and at least this long.
    let real = unsafe { std::ptr::read_unaligned(list) };
    // Never unloaded: the pointers in the list stay good.
    std::mem::forget(library);
    Ok(Lists { real, patched: front::patched(real) })
}

/// What C_Initialize is given besides.
fn parameters() -> Option<&'static CString> {
    static PARAMETERS: OnceLock<Option<CString>> = OnceLock::new();
    let read = || CString::new(std::env::var_os("KEYLEASH_SHIM_PARAMETERS")?.into_vec()).ok();
    PARAMETERS.get_or_init(read).as_ref()
}

fn real() -> Option<&'static CK_FUNCTION_LIST> {
    LISTS.get()?.as_ref().ok().map(|lists| &lists.real)
}

/// The one export.
///
/// # Safety
/// `list` is null or points to room for one pointer, as PKCS#11 says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    match LISTS.get_or_init(load) {
        Ok(lists) => {
            // SAFETY: not null, and by the standard it points to room for one pointer. What is given lives in a static; callers of
            // PKCS#11 only read it.
            unsafe { list.write((&raw const lists.patched).cast_mut()) };
            CKR_OK
        }
        Err(error) => {
            eprintln!("fault shim: {error}");
            CKR_GENERAL_ERROR
        }
    }
}
