//! The functions that stand in front of the real module's.
#![allow(non_snake_case)] // PKCS#11's names

use crate::{
    control::{Outcome, meet},
    real,
};
use cryptoki_sys::*;
use std::ffi::c_void;

/// Functions that pass their arguments on as they are.
macro_rules! passing {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => {
        $(unsafe extern "C" fn $name($($arg: $type),*) -> CK_RV {
            if let Outcome::Return(code) = meet(stringify!($name)) {
                return code;
            }
            let Some(call) = real().and_then(|list| list.$name) else { return CKR_FUNCTION_NOT_SUPPORTED };
            // SAFETY: the real module's function of this name, with what the caller gave for it, unchanged.
            unsafe { call($($arg),*) }
        })*

        /// Every function that a fault can be set on.
        pub(crate) const NAMES: &[&str] = &["C_Decrypt", "C_DecryptInit", "C_Initialize", "C_EncryptInit", "C_FindObjects", "C_GetAttributeValue", "C_GetTokenInfo", $(stringify!($name)),*];

        /// The real module's list with ours in front of what it has.
        pub(crate) fn patched(mut list: CK_FUNCTION_LIST) -> CK_FUNCTION_LIST {
            list.C_GetFunctionList = Some(crate::C_GetFunctionList);
            list.C_Initialize = list.C_Initialize.and(Some(C_Initialize));
            list.C_Decrypt = list.C_Decrypt.and(Some(C_Decrypt));
            list.C_DecryptInit = list.C_DecryptInit.and(Some(C_DecryptInit));
            list.C_EncryptInit = list.C_EncryptInit.and(Some(C_EncryptInit));
            list.C_FindObjects = list.C_FindObjects.and(Some(C_FindObjects));
            list.C_GetTokenInfo = list.C_GetTokenInfo.and(Some(C_GetTokenInfo));
            list.C_GetAttributeValue = list.C_GetAttributeValue.and(Some(C_GetAttributeValue));
            $(list.$name = list.$name.and(Some($name));)*
            list
        }
    };
}

/// C_EncryptInit and C_DecryptInit, with OAEP's hash replaced where the control file says so.
macro_rules! beginning {
    ($($name:ident),*) => {
        $(unsafe extern "C" fn $name(
            session: CK_SESSION_HANDLE,
            mechanism: *mut CK_MECHANISM,
            key: CK_OBJECT_HANDLE,
        ) -> CK_RV {
            let outcome = meet(stringify!($name));
            if let Outcome::Return(code) = outcome {
                return code;
            }
            let Some(call) = real().and_then(|list| list.$name) else { return CKR_FUNCTION_NOT_SUPPORTED };
            if outcome == Outcome::OaepSha1 && !mechanism.is_null() {
                // SAFETY: not null, and by the standard it points to a mechanism.
                let mut changed = unsafe { mechanism.read_unaligned() };
                let params = changed.pParameter.cast::<CK_RSA_PKCS_OAEP_PARAMS>();
                let whole = usize::try_from(changed.ulParameterLen) == Ok(size_of::<CK_RSA_PKCS_OAEP_PARAMS>());
                if changed.mechanism == CKM_RSA_PKCS_OAEP && whole && !params.is_null() {
                    // SAFETY: the mechanism says that its parameter is of this type's size, and this mechanism's is of this type.
                    let mut sha1 = unsafe { params.read_unaligned() };
                    (sha1.hashAlg, sha1.mgf) = (CKM_SHA_1, CKG_MGF1_SHA1);
                    if sha1.ulSourceDataLen == 0 {
                        // SoftHSM takes no other way to say that there is no label.
                        (sha1.source, sha1.pSourceData) = (CKZ_DATA_SPECIFIED, std::ptr::null_mut());
                    }
                    changed.pParameter = (&raw mut sha1).cast();
                    // SAFETY: the real module's function of this name, with a mechanism and parameter that live through the call.
                    return unsafe { call(session, &raw mut changed, key) };
                }
            }
            // SAFETY: the real module's function of this name, with what the caller gave for it, unchanged.
            unsafe { call(session, mechanism, key) }
        })*
    };
}

beginning!(C_EncryptInit, C_DecryptInit);

/// What NSS takes for CK_C_INITIALIZE_ARGS: its parameters stand where the standard has what is reserved, which comes after them.
#[repr(C)]
struct NssArgs {
    standard: CK_C_INITIALIZE_ARGS,
    reserved: *mut c_void,
}

/// As any other, with the parameters of KEYLEASH_SHIM_PARAMETERS where there are some.
unsafe extern "C" fn C_Initialize(args: *mut c_void) -> CK_RV {
    if let Outcome::Return(code) = meet("C_Initialize") {
        return code;
    }
    let Some(call) = real().and_then(|list| list.C_Initialize) else { return CKR_FUNCTION_NOT_SUPPORTED };
    let Some(parameters) = crate::parameters().filter(|_| !args.is_null()) else {
        // SAFETY: the real module's function of this name, with what the caller gave for it, unchanged.
        return unsafe { call(args) };
    };
    // SAFETY: not null, and by the standard it points to such a struct.
    let standard = unsafe { args.cast::<CK_C_INITIALIZE_ARGS>().read_unaligned() };
    let mut args = NssArgs { standard, reserved: std::ptr::null_mut() };
    args.standard.pReserved = parameters.as_ptr().cast_mut().cast();
    // SAFETY: the real module's function of this name, with the caller's arguments in a struct that lives through the call; the
    // parameters live in a static, and the module only reads them.
    unsafe { call((&raw mut args).cast()) }
}

unsafe extern "C" fn C_Decrypt(
    session: CK_SESSION_HANDLE,
    ciphertext: *mut CK_BYTE,
    ciphertext_len: CK_ULONG,
    plain: *mut CK_BYTE,
    plain_len: *mut CK_ULONG,
) -> CK_RV {
    let outcome = meet("C_Decrypt");
    if let Outcome::Return(code) = outcome {
        return code;
    }
    let Some(call) = real().and_then(|list| list.C_Decrypt) else { return CKR_FUNCTION_NOT_SUPPORTED };
    // SAFETY: the real module's function of this name, with what the caller gave for it, unchanged.
    let code = unsafe { call(session, ciphertext, ciphertext_len, plain, plain_len) };
    if outcome == Outcome::WrongPlaintext && code == CKR_OK && !plain.is_null() && !plain_len.is_null() {
        // SAFETY: the call succeeded with these pointers, so `plain_len` can be read, and so many bytes of `plain` written.
        unsafe {
            if *plain_len > 0 {
                *plain ^= 1;
            }
        }
    }
    code
}

unsafe extern "C" fn C_GetAttributeValue(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    let outcome = meet("C_GetAttributeValue");
    if let Outcome::Return(code) = outcome {
        return code;
    }
    let Some(call) = real().and_then(|list| list.C_GetAttributeValue) else { return CKR_FUNCTION_NOT_SUPPORTED };
    // SAFETY: the real module's function of this name, with what the caller gave for it, unchanged.
    let code = unsafe { call(session, object, template, count) };
    if outcome == Outcome::WrongPlaintext && code == CKR_OK && !template.is_null() {
        for index in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: the call succeeded with a template of `count` attributes.
            let attribute = unsafe { template.add(index).read_unaligned() };
            let (value, len) = (attribute.pValue.cast::<CK_BYTE>(), attribute.ulValueLen);
            if attribute.type_ == CKA_VALUE && !value.is_null() && len > 0 && len != CK_UNAVAILABLE_INFORMATION {
                // SAFETY: the module has just written `len` bytes there.
                unsafe { *value ^= 1 };
            }
        }
    }
    code
}

unsafe extern "C" fn C_FindObjects(
    session: CK_SESSION_HANDLE,
    objects: *mut CK_OBJECT_HANDLE,
    room: CK_ULONG,
    count: *mut CK_ULONG,
) -> CK_RV {
    let outcome = meet("C_FindObjects");
    if let Outcome::Return(code) = outcome {
        return code;
    }
    if outcome == Outcome::FindsNothing && !count.is_null() {
        // SAFETY: not null, and by the standard it points to room for the count.
        unsafe { *count = 0 };
        return CKR_OK;
    }
    let Some(call) = real().and_then(|list| list.C_FindObjects) else { return CKR_FUNCTION_NOT_SUPPORTED };
    // SAFETY: the real module's function of this name, with what the caller gave for it, unchanged.
    unsafe { call(session, objects, room, count) }
}

unsafe extern "C" fn C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    let outcome = meet("C_GetTokenInfo");
    if let Outcome::Return(code) = outcome {
        return code;
    }
    let Some(call) = real().and_then(|list| list.C_GetTokenInfo) else { return CKR_FUNCTION_NOT_SUPPORTED };
    // SAFETY: the real module's function of this name, with what the caller gave for it, unchanged.
    let code = unsafe { call(slot, info) };
    if let Outcome::Says(told) = outcome
        && code == CKR_OK
        && !info.is_null()
    {
        // SAFETY: the call succeeded with this pointer, so it points to what the module has filled in.
        let mut said = unsafe { info.read_unaligned() };
        said.flags |= told.flags;
        if told.odd_time {
            said.flags |= CKF_CLOCK_ON_TOKEN;
            said.utcTime = *b"HH:MM:SS        ";
        }
        if told.nul_padding {
            let nul =
                |field: &mut [u8]| field.iter_mut().rev().take_while(|byte| **byte == b' ').for_each(|byte| *byte = 0);
            let (mut label, mut serial) = (said.label, said.serialNumber);
            nul(&mut label);
            nul(&mut serial);
            (said.label, said.serialNumber) = (label, serial);
        }
        // SAFETY: as above.
        unsafe { info.write_unaligned(said) };
    }
    code
}

#[rustfmt::skip]
passing! {
    C_Finalize(a1: *mut c_void);
    C_GetInfo(a1: *mut CK_INFO);
    C_GetSlotList(a1: CK_BBOOL, a2: *mut CK_SLOT_ID, a3: *mut CK_ULONG);
    C_GetSlotInfo(a1: CK_SLOT_ID, a2: *mut CK_SLOT_INFO);
    C_GetMechanismList(a1: CK_SLOT_ID, a2: *mut CK_MECHANISM_TYPE, a3: *mut CK_ULONG);
    C_GetMechanismInfo(a1: CK_SLOT_ID, a2: CK_MECHANISM_TYPE, a3: *mut CK_MECHANISM_INFO);
    C_InitToken(a1: CK_SLOT_ID, a2: *mut CK_UTF8CHAR, a3: CK_ULONG, a4: *mut CK_UTF8CHAR);
    C_InitPIN(a1: CK_SESSION_HANDLE, a2: *mut CK_UTF8CHAR, a3: CK_ULONG);
    C_SetPIN(a1: CK_SESSION_HANDLE, a2: *mut CK_UTF8CHAR, a3: CK_ULONG, a4: *mut CK_UTF8CHAR, a5: CK_ULONG);
    C_OpenSession(a1: CK_SLOT_ID, a2: CK_FLAGS, a3: *mut c_void, a4: CK_NOTIFY, a5: *mut CK_SESSION_HANDLE);
    C_CloseSession(a1: CK_SESSION_HANDLE);
    C_CloseAllSessions(a1: CK_SLOT_ID);
    C_GetSessionInfo(a1: CK_SESSION_HANDLE, a2: *mut CK_SESSION_INFO);
    C_GetOperationState(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: *mut CK_ULONG);
    C_SetOperationState(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: CK_OBJECT_HANDLE, a5: CK_OBJECT_HANDLE);
    C_Login(a1: CK_SESSION_HANDLE, a2: CK_USER_TYPE, a3: *mut CK_UTF8CHAR, a4: CK_ULONG);
    C_Logout(a1: CK_SESSION_HANDLE);
    C_CreateObject(a1: CK_SESSION_HANDLE, a2: *mut CK_ATTRIBUTE, a3: CK_ULONG, a4: *mut CK_OBJECT_HANDLE);
    C_CopyObject(a1: CK_SESSION_HANDLE, a2: CK_OBJECT_HANDLE, a3: *mut CK_ATTRIBUTE, a4: CK_ULONG, a5: *mut CK_OBJECT_HANDLE);
    C_DestroyObject(a1: CK_SESSION_HANDLE, a2: CK_OBJECT_HANDLE);
    C_GetObjectSize(a1: CK_SESSION_HANDLE, a2: CK_OBJECT_HANDLE, a3: *mut CK_ULONG);
    C_SetAttributeValue(a1: CK_SESSION_HANDLE, a2: CK_OBJECT_HANDLE, a3: *mut CK_ATTRIBUTE, a4: CK_ULONG);
    C_FindObjectsInit(a1: CK_SESSION_HANDLE, a2: *mut CK_ATTRIBUTE, a3: CK_ULONG);
    C_FindObjectsFinal(a1: CK_SESSION_HANDLE);
    C_Encrypt(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG);
    C_EncryptUpdate(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG);
    C_EncryptFinal(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: *mut CK_ULONG);
    C_DecryptUpdate(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG);
    C_DecryptFinal(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: *mut CK_ULONG);
    C_DigestInit(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM);
    C_Digest(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG);
    C_DigestUpdate(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG);
    C_DigestKey(a1: CK_SESSION_HANDLE, a2: CK_OBJECT_HANDLE);
    C_DigestFinal(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: *mut CK_ULONG);
    C_SignInit(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE);
    C_Sign(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG);
    C_SignUpdate(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG);
    C_SignFinal(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: *mut CK_ULONG);
    C_SignRecoverInit(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE);
    C_SignRecover(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG);
    C_VerifyInit(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE);
    C_Verify(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: CK_ULONG);
    C_VerifyUpdate(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG);
    C_VerifyFinal(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG);
    C_VerifyRecoverInit(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE);
    C_VerifyRecover(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG);
    C_DigestEncryptUpdate(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG);
    C_DecryptDigestUpdate(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG);
    C_SignEncryptUpdate(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG);
    C_DecryptVerifyUpdate(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG);
    C_GenerateKey(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: *mut CK_ATTRIBUTE, a4: CK_ULONG, a5: *mut CK_OBJECT_HANDLE);
    C_GenerateKeyPair(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: *mut CK_ATTRIBUTE, a4: CK_ULONG, a5: *mut CK_ATTRIBUTE, a6: CK_ULONG, a7: *mut CK_OBJECT_HANDLE, a8: *mut CK_OBJECT_HANDLE);
    C_WrapKey(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE, a4: CK_OBJECT_HANDLE, a5: *mut CK_BYTE, a6: *mut CK_ULONG);
    C_UnwrapKey(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE, a4: *mut CK_BYTE, a5: CK_ULONG, a6: *mut CK_ATTRIBUTE, a7: CK_ULONG, a8: *mut CK_OBJECT_HANDLE);
    C_DeriveKey(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE, a4: *mut CK_ATTRIBUTE, a5: CK_ULONG, a6: *mut CK_OBJECT_HANDLE);
    C_SeedRandom(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG);
    C_GenerateRandom(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG);
}
