//! The relay under abuse: each test misbehaves in one way against a real process, while two well-behaved clients exchange frames all the while.
//!
//! [`siege::Siege`] is the frame of every test: it starts relay and bystanders, and at the end wants every frame of theirs delivered exactly
//! once and the relay's memory, descriptors and connections back where they were. [`raw::Raw`] is a client that sends exactly the bytes it is
//! told. docs/security.md says what is defended, and names these tests.
//!
//! What takes long is `#[ignore]`d and run by `make soak`.

#![allow(unreachable_pub, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../support/mod.rs"]
mod support;

mod raw;
mod siege;

mod http;
mod identity;
mod proxy;
mod resources;
mod silence;
mod soak;
mod tls;
mod websocket;

/// docs/security.md says by which test each promise is shown.
#[test]
fn the_tests_that_the_documentation_names_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = String::new();
    for folder in
        ["relay/tests", "relay/tests/abuse", "dataplane/src/proto/relay/tests", "dataplane/src/proto/wire"]
    {
        for entry in std::fs::read_dir(root.join(folder)).unwrap().map(Result::unwrap) {
            if entry.path().extension().is_some_and(|extension| extension == "rs") {
                sources += &std::fs::read_to_string(entry.path()).unwrap();
            }
        }
    }
    let page = std::fs::read_to_string(root.join("docs/security.md")).unwrap();
    let named = page.split('`').skip(1).step_by(2).filter(|name| name.matches('_').count() > 4);
    let named: Vec<_> = named.collect();
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        assert!(sources.contains(&format!("fn {name}(")), "there is no test {name}");
    }
}
