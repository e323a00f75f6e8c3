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
