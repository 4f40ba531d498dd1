//! The pages of a column, checked before they are decoded.

use parquet::{
    basic::Encoding,
    column::page::{Page, PageMetadata, PageReader},
    errors::{ParquetError, Result},
};

/// Passes pages on whose values take no more memory than their bytes account for. A few bytes can
/// claim any number of values in a dictionary, or in the lengths of a delta encoding, and memory for
/// all of them is taken at once.
pub(super) struct Pages {
    inner: Box<dyn PageReader>,
    /// Whether the dictionary has come; decoding numbers of its entries without it would panic.
    has_dictionary: bool,
}

impl Pages {
    pub(super) fn new(inner: Box<dyn PageReader>) -> Self {
        Self { inner, has_dictionary: false }
    }

    fn check(&mut self, page: &Page) -> Result<()> {
        let refused = |words: String| Err(ParquetError::General(words));
        match (page, page.encoding()) {
            (
                Page::DictionaryPage { buf, num_values, .. },
                Encoding::PLAIN | Encoding::PLAIN_DICTIONARY,
            ) => {
                // Every value of the types that are read is 4 bytes or more.
                if *num_values as usize > buf.len() / 4 {
                    let bytes = buf.len();
                    return refused(format!(
                        "a dictionary of {num_values} values in {bytes} bytes"
                    ));
                }
                self.has_dictionary = true;
                Ok(())
            }
            (Page::DictionaryPage { .. }, encoding) => {
                refused(format!("a dictionary in encoding {encoding}"))
            }
            (_, Encoding::PLAIN) => Ok(()),
            (_, Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY) if self.has_dictionary => {
                Ok(())
            }
            (_, Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY) => {
                refused("of a dictionary that is not there".into())
            }
            (_, encoding) => refused(format!("in encoding {encoding}, not plain or dictionary")),
        }
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.inner.get_next_page()?;
        page.as_ref().map_or(Ok(()), |page| self.check(page))?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.inner.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.inner.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.inner.at_record_boundary()
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dictionary(num_values: u32) -> Page {
        let (buf, encoding) = (vec![0; 12].into(), Encoding::PLAIN);
        Page::DictionaryPage { buf, num_values, encoding, is_sorted: false }
    }

    fn data(encoding: Encoding) -> Page {
        let level = Encoding::RLE;
        Page::DataPage {
            buf: vec![0; 4].into(),
            num_values: u32::MAX,
            encoding,
            def_level_encoding: level,
            rep_level_encoding: level,
            statistics: None,
        }
    }

    #[test]
    fn a_page_that_claims_more_than_it_has_is_refused() {
        let check = |pages: Vec<Page>| {
            let mut all = Pages::new(Box::new(Given(pages.into_iter())));
            let found: Result<Vec<Page>> = all.by_ref().collect();
            found.map(|pages| pages.len()).map_err(|error| error.to_string())
        };
        let numbers = || data(Encoding::RLE_DICTIONARY);
        assert_eq!(check(vec![dictionary(3), numbers(), data(Encoding::PLAIN)]), Ok(3));
        for (pages, expected) in [
            (vec![dictionary(4)], "a dictionary of 4 values in 12 bytes"),
            (vec![numbers()], "a dictionary that is not there"),
            (vec![data(Encoding::DELTA_LENGTH_BYTE_ARRAY)], "in encoding DELTA_LENGTH_BYTE_ARRAY"),
        ] {
            let error = check(pages).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    /// Pages that are there.
    struct Given(std::vec::IntoIter<Page>);

    impl Iterator for Given {
        type Item = Result<Page>;

        fn next(&mut self) -> Option<Self::Item> {
            self.0.next().map(Ok)
        }
    }

    impl PageReader for Given {
        fn get_next_page(&mut self) -> Result<Option<Page>> {
            Ok(self.0.next())
        }

        fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
            Ok(None)
        }

        fn skip_next_page(&mut self) -> Result<()> {
            Ok(())
        }
    }
}
