//! What attributes, flags and codes of a token decide, and what the tokens that were tried say.
//!
//! # Attributes of a key
//!
//! Every attribute that PKCS#11 (2.40 to 3.2) gives a key, and what keyleash does about it, in a key that it made, that was adopted
//! (`kek rotate --adopt`), or that another tool made. *Refused*: nothing is wrapped or unwrapped by it; a KEK that worked before and is
//! refused now is denied. *Half a key*: misconfigured by name; what it wrapped is opened, nothing new is wrapped, and it is not
//! adopted. (An older version of a KEK needs no more than the half that unwraps.) *Warned of*: in `kek create`, `list`, `show`, `rotate
//! --adopt` and `status`, and in `warnings` of their JSON and of [`KekInfo`](crate::token::KekInfo). What a token does not tell is as
//! good as what is harmless, but for the first two.
//!
//! | attribute | what is done | why |
//! | --- | --- | --- |
//! | CKA_EXTRACTABLE | refused unless false | it could be wrapped and taken out of the token |
//! | CKA_SENSITIVE | refused unless true | it could be read |
//! | CKA_DECRYPT or CKA_ENCRYPT, with CKA_WRAP or CKA_UNWRAP | refused when both are true | wrapping takes keys out, decrypting shows them; counter modes decrypt by encrypting |
//! | CKA_ALWAYS_AUTHENTICATE | refused when true | each unwrap would need a login of its own, and fail like a token that is away |
//! | CKA_ALLOWED_MECHANISMS | refused when it is told and lacks the profile's | every call would fail, as if it were denied |
//! | CKA_START_DATE, CKA_END_DATE | denied outside of them; refused when unreadable | most tokens do not look ([`operations`](super::operations#dates-of-a-kek)) |
//! | CKA_VALUE_LEN (AES), CKA_MODULUS (RSA) | refused unless 256 bits, or with fewer than 3072 | too weak |
//! | CKA_PUBLIC_EXPONENT | refused below 3 | it encrypts nothing |
//! | CKA_DECRYPT (`aes-kw`: CKA_UNWRAP) | off: disabled, which is a denial | how an operator revokes |
//! | CKA_ENCRYPT (`aes-kw`: CKA_WRAP) | off while the other is on: half a key | it wraps nothing new |
//! | the public half of an RSA key: the CKO_PUBLIC_KEY of its CKA_ID | missing, several, of another CKA_MODULUS, or CKA_ENCRYPT off: half a key | nothing wraps by it, or what another key's wraps is lost |
//! | CKA_WRAP of the public half | warned of when true | with CKA_DECRYPT of the private half, whoever has the PIN takes other keys out |
//! | CKA_PRIVATE | warned of when false | used without a login: a changed PIN revokes nothing |
//! | CKA_MODIFIABLE | warned of when false; shown | it cannot be disabled |
//! | CKA_DESTROYABLE | shown | whether it can be deleted is its owner's choice; with CKA_MODIFIABLE off too, warned of |
//! | CKA_LOCAL, CKA_NEVER_EXTRACTABLE, CKA_ALWAYS_SENSITIVE | warned of when false; never taken unasked | somebody outside of the token may have it |
//! | CKA_SIGN, CKA_SIGN_RECOVER | warned of when true | raw RSA signing is decryption; a GMAC is the cipher's output: a way around a CKA_DECRYPT that is off |
//! | CKA_DERIVE | warned of when true | the same, by keys derived from the cipher's output |
//! | CKA_TRUSTED | warned of for `aes-kw` | it may wrap keys that only a trusted key may wrap; no other profile wraps keys |
//! | CKA_ID | not 1 to 64 bytes: listed apart, no KEK; twice: refused | records name KEKs by it |
//! | CKA_CLASS, CKA_KEY_TYPE | other than AES secret and RSA private keys: not listed | no profile uses them |
//! | CKA_TOKEN | session objects are not looked for | gone with the session |
//! | CKA_LABEL | shown; names keys of ours that a crash left | never decides which key is used |
//! | CKA_VERIFY, CKA_VERIFY_RECOVER | ignored | they tell whether, not what |
//! | CKA_COPYABLE | ignored | a copy can be no more extractable, and who has the PIN can unwrap every AEK as well; a copy is another key, or a twin (refused). Before a KEK counts as destroyed, look for copies |
//! | CKA_WRAP_WITH_TRUSTED | ignored | a KEK that is not extractable is wrapped by nothing |
//! | CKA_WRAP_TEMPLATE, CKA_UNWRAP_TEMPLATE, CKA_DERIVE_TEMPLATE | ignored | the token enforces them; that they let an AEK through, the round trip before a KEK is taken shows |
//! | CKA_KEY_GEN_MECHANISM | ignored | CKA_LOCAL says whether there was one |
//! | CKA_CHECK_VALUE | never judged or shown; compared when a record that the KEK unwrapped before is refused | 24 bits of what the cipher makes of zeros. Another key under the same CKA_ID is found by proofs; by this it is told from trouble, where it may not wrap. So are CKA_KEY_TYPE, the size, CKA_MODULUS, CKA_LOCAL, CKA_ALWAYS_SENSITIVE and CKA_NEVER_EXTRACTABLE |
//! | CKA_VALUE, CKA_PRIVATE_EXPONENT, CKA_PRIME_1, … | never read of a KEK | |
//! | CKA_MODULUS_BITS, CKA_PUBLIC_KEY_INFO, CKA_SUBJECT | ignored | CKA_MODULUS says it |
//! | CKA_UNIQUE_ID (3.0) | compared as CKA_CHECK_VALUE is, else ignored | not every token has it, and a restored key gets another |
//! | CKA_ENCAPSULATE, CKA_DECAPSULATE and their templates, CKA_PARAMETER_SET (3.2) | ignored | of key types that no profile uses |
//! | CKA_OBJECT_VALIDATION_FLAGS (3.2), CKA_PROFILE_ID (of profile objects) | ignored | they certify the module, not the key |
//! | CKA_SECONDARY_AUTH, CKA_AUTH_PIN_FLAGS (deprecated in 2.40) | ignored | CKA_ALWAYS_AUTHENTICATE took their place |
//! | vendors' own | ignored | their meaning is unknown |
//!
//! **Revoking from somebody who has the PIN.** GCM decrypts by encrypting a counter. While CKA_ENCRYPT of an `aes-gcm` KEK is on, a
//! token that has CKM_AES_CTR or CKM_AES_ECB undoes a wrapping for whoever logs in, though CKA_DECRYPT is off. keyleash asks for no such
//! thing, and a service is denied by CKA_DECRYPT alone; switch both off where the host itself is not trusted any more. With RSA the
//! private half decrypts and the public half is public, so that CKA_DECRYPT (and CKA_SIGN) is all there is.
//!
//! # Flags of a token
//!
//! | flag | what it decides |
//! | --- | --- |
//! | CKF_TOKEN_INITIALIZED | off: no label matches it |
//! | CKF_USER_PIN_INITIALIZED | off, and C_Login says CKR_USER_PIN_NOT_INITIALIZED: denied; on: believed once two fresh contexts repeat the code |
//! | CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_LOCKED | whether a PIN is tried at all ([`operations`](super::operations#the-pin)) |
//! | no flags to be had, because C_GetTokenInfo fails | no PIN is tried that the token has not taken before; by slot id, once |
//! | CKF_CLOCK_ON_TOKEN, and the time | not read: an odd one costs nothing |
//! | CKF_LOGIN_REQUIRED, CKF_PROTECTED_AUTHENTICATION_PATH | not read: the PIN is always sent |
//! | CKF_WRITE_PROTECTED | not read: a session for reading is opened where C_OpenSession says CKR_TOKEN_WRITE_PROTECTED |
//! | CKF_USER_PIN_TO_BE_CHANGED | not read: what the token then says (CKR_PIN_EXPIRED) denies |
//!
//! # Codes
//!
//! A code is a hint. The call is made once more on a new session where the third column says so, then it is looked at whether the token
//! is listed, the login holds, the KEK is found, and a record that unwrapped before still does. Not listed: unreachable. Listed,
//! logged in, and no KEK: denied. Another key in its place: denied, and told. Else the code decides:
//!
//! | verdict | codes | once more |
//! | --- | --- | --- |
//! | denied | CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_FUNCTION_REJECTED, CKR_ACTION_PROHIBITED, CKR_(UN)WRAPPING_KEY_TYPE_INCONSISTENT, CKR_KEY_TYPE_INCONSISTENT, CKR_PIN_* but for logins ([`operations`](super::operations#the-pin)), CKR_USER_PIN_NOT_INITIALIZED; of a key that was just found also CKR_(UN)WRAPPING_KEY_HANDLE_INVALID | yes |
//! | unreachable | CKR_OBJECT_, KEY_, SESSION_HANDLE_INVALID, CKR_SESSION_CLOSED, CKR_SESSION_COUNT, CKR_USER_NOT_LOGGED_IN, CKR_OPERATION_ACTIVE, CKR_OPERATION_NOT_INITIALIZED, CKR_KEY_CHANGED | yes |
//! | unreachable; a bad record where a known good one still unwraps and the code is CKR_GENERAL_ERROR, CKR_DEVICE_ERROR or CKR_FUNCTION_FAILED | every other code, vendors' own and unknown ones too | in a fresh context |
//! | bad record; unreachable where a known good one is refused as well | CKR_ENCRYPTED_DATA_*, CKR_WRAPPED_KEY_*, CKR_DATA_* | after another record |
//! | misconfigured; denied when the KEK worked before; a bad record when it still does | CKR_MECHANISM_*, CKR_ARGUMENTS_BAD, CKR_TEMPLATE_*, CKR_ATTRIBUTE_*, CKR_FUNCTION_NOT_SUPPORTED, CKR_*KEY_SIZE_RANGE, CKR_KEY_NOT_WRAPPABLE, CKR_KEY_UNEXTRACTABLE, CKR_SESSION_READ_ONLY, CKR_TOKEN_WRITE_PROTECTED, CKR_USER_TYPE_INVALID, CKR_BUFFER_TOO_SMALL | yes |
//! | misconfigured | a denial of a wrap by a key that is half one | |
//! | fatal | CKR_CANT_LOCK, CKR_NEED_TO_CREATE_THREADS, CKR_MUTEX_BAD, CKR_FIPS_SELF_TEST_FAILED, CKR_LIBRARY_LOAD_FAILED | |
//!
//! # What the tokens say
//!
//! Run on Debian 12 by `softhsm/token-matrix --survey`, which prints what stands here; in brackets what was not run.
//!
//! | | SoftHSM 2.6.1 | kryoptic 1.5.4 | opencryptoki 3.8.1, soft token | NSS 3.87 | tpm2-pkcs11 1.9 on swtpm |
//! | --- | --- | --- | --- | --- | --- |
//! | `aes-gcm` | conforms | conforms | no: CKR_MECHANISM_INVALID | no: CKR_BUFFER_TOO_SMALL, it wants one C_Encrypt | no: makes no AES keys |
//! | `aes-kw` | conforms | conforms | no: CKR_MECHANISM_INVALID | conforms | no: makes no AES keys |
//! | `rsa-oaep-sha256` | no: CKR_ARGUMENTS_BAD, SHA-1 alone | conforms | conforms | conforms | no: CKR_ATTRIBUTE_VALUE_INVALID to the probe's key pair, which is of the session alone |
//! | CKA_DECRYPT or CKA_UNWRAP off | KEY_FUNCTION_NOT_PERMITTED | KEY_FUNCTION_NOT_PERMITTED; `aes-kw` WRAPPING_KEY_HANDLE_INVALID | KEY_FUNCTION_NOT_PERMITTED | KEY_TYPE_INCONSISTENT | (nothing, until a fresh context) |
//! | KEK destroyed, by its old handle | OBJECT_HANDLE_INVALID; `aes-kw` UNWRAPPING_KEY_HANDLE_INVALID | GENERAL_ERROR | KEY_HANDLE_INVALID | KEY_HANDLE_INVALID | (nothing, until a fresh context) |
//! | a record with one bit flipped | GENERAL_ERROR | ENCRYPTED_DATA_INVALID; `aes-kw` and RSA DEVICE_ERROR | FUNCTION_FAILED | ENCRYPTED_DATA_INVALID; `aes-kw` WRAPPED_KEY_INVALID | |
//! | a record that was cut short | GENERAL_ERROR | DEVICE_ERROR | ENCRYPTED_DATA_LEN_RANGE | DATA_LEN_RANGE | |
//! | a wrong PIN | PIN_INCORRECT, and CKF_USER_PIN_COUNT_LOW; never locks | PIN_INCORRECT, no flag in three | PIN_INCORRECT, and flags: of four starts two were tried | PIN_INCORRECT, no flag in three | |
//! | a PIN's length | 4 to 255 | | 4 to 8 | | |
//! | time in C_GetTokenInfo | readable, or none | readable, or none | `HH:MM:SS` | readable, or none | |
//! | CKA_LOCAL of a key that it made | true | true | true | false of every key in its database, so warned of | |
//! | CKA_SIGN_RECOVER of an RSA key, unless asked for | | | true | true | |
//! | CKA_MODIFIABLE | told | told | told | told | |
//! | CKA_DESTROYABLE, CKA_COPYABLE | told | told | not told, nor taken in a template | not told; in a template CKR_GENERAL_ERROR | |
//! | CKA_ALWAYS_AUTHENTICATE of a private key | told | told | told | not told | |
//! | CKA_ALLOWED_MECHANISMS | told, empty for all | not told | not told | not told | |
//! | CKA_TRUSTED, CKA_WRAP_WITH_TRUSTED | told | told | not told | not told | |
//! | CKA_KEY_GEN_MECHANISM; CKA_UNIQUE_ID | told; not told | told; told | not told | not told | |
//! | CKA_START_DATE, CKA_END_DATE | told but for private objects that have one; not looked at | told; not looked at | told | told | |
//! | what it wants first | SOFTHSM2_CONF | KRYOPTIC_CONF | the daemon `pkcsslotd` | parameters of C_Initialize, which keyleash does not give: something in front must (p11-kit's `x-init-reserved`; in our runs the fault shim) | TPM2_PKCS11_STORE, and a resource manager before the TPM |
//!
//! keyleash asks for the attributes in the last rows of a KEK that it makes, and where a token takes not all of them for fewer, with a warning: first
//! without CKA_MODIFIABLE and CKA_DESTROYABLE, then without CKA_SIGN_RECOVER and CKA_DERIVE.
