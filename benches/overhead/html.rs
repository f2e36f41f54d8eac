pub(crate) fn page(_: &crate::report::Report) -> String { String::new() }
