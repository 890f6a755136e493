//! What the README shows is what the program does. `SHAKEDECK_BLESS=1` rewrites the generated parts.

use std::fs;

#[test]
fn the_key_table_of_the_readme_is_the_table_of_the_program() {
    let (begin, end) = ("<!-- keys -->\n", "<!-- /keys -->");
    let readme = fs::read_to_string("README.md").unwrap();
    let start = readme.find(begin).expect("the README has a place for the keys") + begin.len();
    let stop = start + readme[start..].find(end).expect("the place for the keys ends");
    let table = shakedeck::ui::keymap::markdown();
    if std::env::var_os("SHAKEDECK_BLESS").is_some() {
        fs::write("README.md", format!("{}{table}{}", &readme[..start], &readme[stop..])).unwrap();
        return;
    }
    assert_eq!(&readme[start..stop], table, "run this test with SHAKEDECK_BLESS=1 to rewrite the README");
}

#[test]
fn the_readme_names_every_exit_code_state_and_screen() {
    let readme = fs::read_to_string("README.md").unwrap();
    for state in shakedeck::status::State::ALL {
        assert!(readme.contains(state.word()), "{}", state.word());
    }
    for code in ["0 done", "2 usage", "3 source", "4 destination", "5 finished", "8 spool", "75 interrupted"]
    {
        assert!(readme.contains(code), "{code}");
    }
    assert!(fs::exists("assets/screen-120x35.svg").unwrap());
}
