//! The golden blocks of `tests/compat/`, which an independent program made: every release opens them, and seals to them.

use super::*;

const GOLDEN: [&str; 8] = [
    include_str!("../../../tests/compat/block-v1-suite1-empty.txt"),
    include_str!("../../../tests/compat/block-v1-suite1-short.txt"),
    include_str!("../../../tests/compat/block-v1-suite1-long.txt"),
    include_str!("../../../tests/compat/block-v1-suite1-hashed.txt"),
    include_str!("../../../tests/compat/block-v1-suite2-empty.txt"),
    include_str!("../../../tests/compat/block-v1-suite2-short.txt"),
    include_str!("../../../tests/compat/block-v1-suite2-long.txt"),
    include_str!("../../../tests/compat/block-v1-suite2-hashed.txt"),
];

fn find<'a>(file: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = file.lines().filter_map(|line| line.split_once(" ="));
    fields.find(|(key, _)| *key == name).map(|(_, value)| value.trim())
}

fn field<'a>(file: &'a str, name: &str) -> &'a str {
    find(file, name).unwrap()
}

#[test]
fn golden_blocks_open_and_are_sealed_to_the_same_bytes() {
    for file in GOLDEN {
        let bytes = |name| hex::decode(field(file, name)).unwrap();
        let version: u32 = field(file, "version").parse().unwrap();
        let (plaintext, ciphertext) = (bytes("plaintext"), bytes("ciphertext"));
        let account = AccountId::from_bytes(&bytes("account")).unwrap();
        let address = Address::new(&bytes("address")).unwrap();
        let header = BlockHeader::parse(&bytes("header")).unwrap();
        assert_eq!((header.aek_version(), header.nonce().to_vec()), (version, bytes("nonce")));
        for &backend in Backend::available() {
            Key::new(bytes("aek").try_into().unwrap()).with(backend, &account, |sealer| {
                let mut buf = ciphertext.clone();
                sealer.open_in_place(&header, &address, &mut buf).unwrap();
                assert_eq!(buf, plaintext, "{backend}");
                let nonce = nonce(&bytes("nonce"));
                let sealed = sealer.seal_with(nonce, header.suite(), version, &address, buf.as_mut_slice().into());
                assert_eq!((sealed.unwrap().as_bytes(), &buf), (&bytes("header")[..], &ciphertext), "{backend}");
            });
        }
    }
}

#[test]
fn an_object_s_name_of_many_parts_is_hashed_to_the_same_address_for_ever() {
    let named: Vec<_> = GOLDEN.iter().filter(|file| find(file, "parts").is_some()).collect();
    assert_eq!(named.len(), 2);
    for file in named {
        let parts: Vec<_> = field(file, "parts").split(' ').map(|part| hex::decode(part).unwrap()).collect();
        let parts: Vec<_> = parts.iter().map(Vec::as_slice).collect();
        let address = Address::object(ObjectId::hashed(&parts), 9);
        assert_eq!(hex::encode(address.as_bytes()), field(file, "address"));
    }
}
