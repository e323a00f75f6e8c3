//! The calls that hand out a key, and those whose answer cryptoki makes less of than there is in it, straight through the module's
//! function list into buffers of our own.
//!
//! cryptoki gives the plaintext of C_Decrypt as a bare `Vec` after asking for its length first (a second call, which some
//! tokens refuse), and reads CKA_VALUE into a buffer that it frees without wiping. Here the token writes where the
//! caller wipes. Everything else stays with cryptoki. Beside them stand `atexit` and `_exit`, for the end of the process. The only unsafe code
//! of the token room.
#![allow(unsafe_code)]

use cryptoki::{
    error::{Error, Rv, RvError},
    object::{AttributeType, ObjectHandle},
    session::Session,
    slot::Slot,
};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_FUNCTION_LIST, CK_RV, CK_SLOT_ID, CK_TOKEN_INFO, CK_ULONG, CK_UNAVAILABLE_INFORMATION,
};
use std::{ffi::c_int, path::Path, ptr};

/// The function list of a loaded module, the same that cryptoki calls.
pub(super) struct Raw {
    functions: CK_FUNCTION_LIST,
    /// What the pointers in the list point into.
    _library: cryptoki_sys::Pkcs11,
}

/// What tells a library from another one in this process, whatever the paths that it was loaded by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// The address of C_GetFunctionList.
    entry: usize,
    /// The address of its function list, where that is always the same.
    list: Option<usize>,
}

impl Origin {
    pub(super) fn is(self, other: Self) -> bool {
        self.entry == other.entry || self.list.is_some() && self.list == other.list
    }
}

impl Raw {
    /// Takes the function list of a module that cryptoki has loaded from the same path. `None` for a module that gives a context of
    /// its own with each C_GetFunctionList (p11-kit's client does): what cryptoki initialised would not be initialised here.
    pub(super) fn load(path: &Path) -> Result<(Option<Self>, Origin), Error> {
        // SAFETY: dlopen of a library runs its initialisers. cryptoki has opened this very file in this process before, so nothing
        // runs now; the symbols are those of the PKCS#11 headers that the bindings were made from.
        let library = unsafe { cryptoki_sys::Pkcs11::new(path) }.map_err(Error::LibraryLoading)?;
        let get = *library.C_GetFunctionList.as_ref().map_err(|_| Error::MissingSymbol("C_GetFunctionList"))?;
        let mut lists = [ptr::null_mut(); 2];
        for list in &mut lists {
            // SAFETY: the function is the module's C_GetFunctionList. It may be called before C_Initialize and from any thread, and
            // writes one pointer to where it is told.
            settled(unsafe { get(list) })?;
        }
        let [list, again] = lists;
        if list.is_null() {
            return Err(Error::NullFunctionPointer);
        }
        let entry = get as usize;
        if list != again {
            return Ok((None, Origin { entry, list: None }));
        }
        // SAFETY: the call succeeded and gave a pointer, which by the standard is to the module's function list: static, of
        // version 2.x, so at least as long as this struct. It is copied, unaligned because the struct is packed on some targets.
        let functions = unsafe { ptr::read_unaligned(list) };
        Ok((Some(Self { functions, _library: library }), Origin { entry, list: Some(list.addr()) }))
    }

    /// C_GetTokenInfo, as the module filled it in.
    pub(super) fn token_info(&self, slot: Slot) -> Result<CK_TOKEN_INFO, Error> {
        let call = self.functions.C_GetTokenInfo.ok_or(Error::NullFunctionPointer)?;
        let mut info = CK_TOKEN_INFO::default();
        // SAFETY: the function is the module's C_GetTokenInfo, which may be called on any thread of an initialised module and with any
        // slot id; it writes one CK_TOKEN_INFO, plain bytes and numbers, to where it is told: memory of ours that lives through the call.
        let code = unsafe { call(CK_SLOT_ID::try_from(slot.id())?, &raw mut info) };
        settled(code)?;
        Ok(info)
    }

    /// The second half of a decryption that [`Session::decrypt_init`] began: one C_Decrypt into `plain`. Gives the plaintext's
    /// length, at most that of `plain`; on an error the operation may be left active on the session.
    pub(super) fn decrypt(&self, session: &Session, ciphertext: &[u8], plain: &mut [u8]) -> Result<usize, Error> {
        let call = self.functions.C_Decrypt.ok_or(Error::NullFunctionPointer)?;
        // The standard passes what is only read by a pointer that may be written through: so a copy, for modules that do.
        let mut ciphertext = ciphertext.to_vec();
        let mut len = CK_ULONG::try_from(plain.len())?;
        // SAFETY: the function is the module's C_Decrypt. Each pointer is to memory of ours that lives through the call, with
        // the length that is said; the module writes at most `len` bytes to `plain`, and `len` itself. The session is open
        // (cryptoki's, borrowed here) and used by no other thread: Session is not Sync.
        let code = unsafe {
            call(
                session.handle(),
                ciphertext.as_mut_ptr(),
                CK_ULONG::try_from(ciphertext.len())?,
                plain.as_mut_ptr(),
                &raw mut len,
            )
        };
        settled(code)?;
        within(len, plain.len())
    }

    /// Reads an attribute of an object into `value`, in one call. Gives its length, at most that of `value`.
    pub(super) fn attribute(
        &self,
        session: &Session,
        object: ObjectHandle,
        attribute: AttributeType,
        value: &mut [u8],
    ) -> Result<usize, Error> {
        self.attributes(session, object, [(attribute, value)]).map(|[len]| len)
    }

    /// Reads attributes of an object, each into its own memory, in one call. Gives their lengths, each at most that of its memory.
    pub(super) fn attributes<const N: usize>(
        &self,
        session: &Session,
        object: ObjectHandle,
        mut wanted: [(AttributeType, &mut [u8]); N],
    ) -> Result<[usize; N], Error> {
        let call = self.functions.C_GetAttributeValue.ok_or(Error::NullFunctionPointer)?;
        let mut template = [CK_ATTRIBUTE::default(); N];
        for (attribute, (type_, value)) in template.iter_mut().zip(&mut wanted) {
            attribute.type_ = (*type_).into();
            attribute.pValue = value.as_mut_ptr().cast();
            attribute.ulValueLen = CK_ULONG::try_from(value.len())?;
        }
        // SAFETY: the function is the module's C_GetAttributeValue. The template's N attributes live through the call and each points to
        // a slice of ours, borrowed for as long, with its length; the module writes at most that many bytes there, and the lengths
        // themselves. The session is open (cryptoki's, borrowed here) and used by no other thread: Session is not Sync.
        let code = unsafe { call(session.handle(), object.handle(), template.as_mut_ptr(), CK_ULONG::try_from(N)?) };
        settled(code)?;
        let mut lens = [0; N];
        for ((len, attribute), (_, value)) in lens.iter_mut().zip(template).zip(&wanted) {
            // Copied out: a reference into a struct that is packed on some targets is not allowed.
            let given = attribute.ulValueLen;
            if given == CK_UNAVAILABLE_INFORMATION {
                return Err(Error::Pkcs11(
                    RvError::AttributeTypeInvalid,
                    cryptoki::context::Function::GetAttributeValue,
                ));
            }
            *len = within(given, value.len())?;
        }
        Ok(lens)
    }
}

unsafe extern "C" {
    /// C11 7.22.4.2: `f` runs as the process ends by `exit`, before what was registered earlier. Nonzero: no room.
    safe fn atexit(f: extern "C" fn()) -> c_int;

    /// POSIX: ends the process at once; nothing registered with `atexit` runs.
    safe fn _exit(status: c_int) -> !;
}

/// Ends the process under whatever calls are still inside of a module.
pub(super) fn exit_at_once(status: u8) -> ! {
    _exit(status.into())
}

/// Has `farewell` run as this process ends, before the exit handlers of every library that is loaded by now. It must not panic.
pub(super) fn before_exit(farewell: extern "C" fn()) -> bool {
    atexit(farewell) == 0
}

fn settled(code: CK_RV) -> Result<(), Error> {
    // The function is of no interest: the step is named by the caller.
    Rv::from(code).into_result(cryptoki::context::Function::Decrypt)
}

/// A module that claims to have written more than there was room for is not believed.
fn within(len: CK_ULONG, room: usize) -> Result<usize, Error> {
    let too_long = || Error::Pkcs11(RvError::BufferTooSmall, cryptoki::context::Function::Decrypt);
    usize::try_from(len).ok().filter(|len| *len <= room).ok_or_else(too_long)
}
