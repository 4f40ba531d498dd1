//! Encoded images (PNG, JPEG) as rows of bytes.

use std::io::Cursor;

use image::{
    ColorType, DynamicImage, ExtendedColorType, ImageDecoder as _, ImageFormat, ImageReader,
};

use super::{Fit, dataset::by, file::Fault};

/// What a file should be.
const FORMATS: &str = "a whole PNG or JPEG image";

/// The rows that encoded images become: all of one shape, which the student decides or, for one that
/// takes any, the first image.
#[derive(Debug)]
pub(super) struct Rows {
    fit: Fit,
    shape: Option<[usize; 3]>,
    planes: Vec<u8>,
}

impl Rows {
    pub(super) fn new(fit: Fit) -> Self {
        Self { fit, shape: fit.image_shape, planes: Vec::new() }
    }

    /// The shape, unless there is no image yet that decides it, and the rows.
    pub(super) fn finish(self) -> (Option<[usize; 3]>, Vec<u8>) {
        (self.shape, self.planes)
    }

    /// Decodes an image and appends its planes: its red, green and blue as they are, or its grey.
    /// Where the rows are grey and the image is not, L = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601),
    /// rounded as in Pillow's `convert("L")`; the other way round, three planes of that grey. What
    /// it says of transparency plays no part, nor what its metadata says of orientation.
    ///
    /// # Errors
    /// If it is not a PNG or JPEG image of 8 bits or less, is cut, or has another size. Nothing is
    /// decoded of an image whose header gives another size, so one that would be huge costs nothing.
    pub(super) fn push(&mut self, encoded: &[u8]) -> Result<(), Fault> {
        let unreadable = |error: String| Fault::new("image", error, FORMATS);
        let reader = ImageReader::new(Cursor::new(encoded)).with_guessed_format();
        let reader = reader.map_err(|error| unreadable(error.to_string()))?;
        match reader.format() {
            Some(ImageFormat::Png) => {}
            // The decoder would fill what is missing with grey.
            Some(ImageFormat::Jpeg) if jpeg_ends(encoded) => {}
            Some(ImageFormat::Jpeg) => return Err(unreadable("a JPEG that is cut".into())),
            Some(other) => return Err(unreadable(format!("{other:?}"))),
            None => return Err(unreadable("of no known format".into())),
        }
        let decoder = reader.into_decoder().map_err(|error| unreadable(error.to_string()))?;
        if bits_per_channel(decoder.original_color_type()) > 8 {
            return Err(Fault::new("bits per channel", 16, "8 or less"));
        }
        let colour = decoder.color_type().has_color();
        let (width, height) = decoder.dimensions();
        let [channels, ..] = self.admit(height as usize, width as usize, colour)?;
        let image = DynamicImage::from_decoder(decoder);
        let image = image.map_err(|error| unreadable(error.to_string()))?;
        self.append(&image, channels)
    }

    /// Takes an image's size, as the shape of all rows if it is the first.
    fn admit(&mut self, height: usize, width: usize, colour: bool) -> Result<[usize; 3], Fault> {
        let Some(shape) = self.shape else {
            let shape = [if colour { 3 } else { 1 }, height, width];
            self.fit.check_shape(shape)?;
            self.shape = Some(shape);
            return Ok(shape);
        };
        if shape[1..] == [height, width] {
            return Ok(shape);
        }
        let whose = match self.fit.image_shape {
            Some(_) => "the student's image size",
            None => "as the first image",
        };
        let expected = format!("{}, {whose}", by(&shape[1..]));
        Err(Fault::new("height x width", by(&[height, width]), expected))
    }

    fn append(&mut self, image: &DynamicImage, channels: usize) -> Result<(), Fault> {
        let bytes = image.as_bytes();
        // Every type that 8 bits or less become; grey ones may have an alpha, colours too.
        let step = match image.color() {
            ColorType::L8 => 1,
            ColorType::La8 => 2,
            ColorType::Rgb8 => 3,
            ColorType::Rgba8 => 4,
            other => {
                return Err(Fault::new("pixels", format!("{other:?}"), "grey or RGB of 8 bits"));
            }
        };
        let plane = |channel: usize| bytes.iter().copied().skip(channel).step_by(step);
        match (channels, image.color().has_color()) {
            (3, true) => (0..3).for_each(|channel| self.planes.extend(plane(channel))),
            (_, true) => self.planes.extend(bytes.chunks_exact(step).map(grey)),
            (copies, false) => (0..copies).for_each(|_| self.planes.extend(plane(0))),
        }
        Ok(())
    }
}

/// Whether the last marker of a JPEG file, EOI, is there. Segments are passed over by their lengths (a
/// thumbnail within one has an EOI of its own), and what is coded between markers byte by byte (ITU-T
/// T.81, annex B.1).
fn jpeg_ends(encoded: &[u8]) -> bool {
    let mut at = 0;
    while let Some([0xff, marker]) = encoded.get(at..at + 2) {
        match marker {
            0xd9 => return true,
            // Fill bytes before a marker.
            0xff => at += 1,
            // Those without a segment: a byte 0xff that was coded, TEM, RST and SOI.
            0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
            _ => {
                let Some(&[high, low]) = encoded.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
            }
        }
        match encoded.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0xff)) {
            Some(next) => at += next,
            None => return false,
        }
    }
    false
}

/// Luma of a pixel that begins with R, G and B.
fn grey(pixel: &[u8]) -> u8 {
    const WEIGHTS: [u32; 3] = [19_595, 38_470, 7_471];
    let sum: u32 = WEIGHTS.iter().zip(pixel).map(|(weight, byte)| weight * u32::from(*byte)).sum();
    // The weights add up to 2^16.
    ((sum + 0x8000) >> 16) as u8
}

fn bits_per_channel(color: ExtendedColorType) -> u16 {
    color.bits_per_pixel() / u16::from(color.channel_count()).max(1)
}

#[cfg(test)]
pub(crate) mod tests {
    use image::ImageEncoder as _;

    use super::*;

    /// A PNG file.
    pub(crate) fn png(width: u32, height: u32, color: ExtendedColorType, pixels: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut file);
        encoder.write_image(pixels, width, height, color).unwrap();
        file
    }

    /// A grey PNG file whose pixels count up from `first`.
    pub(crate) fn grey_png(width: u32, height: u32, first: u8) -> Vec<u8> {
        let pixels: Vec<u8> = (0..width * height).map(|at| first.wrapping_add(at as u8)).collect();
        png(width, height, ExtendedColorType::L8, &pixels)
    }

    fn rows(width: usize, image_shape: Option<[usize; 3]>) -> Rows {
        Rows::new(Fit { width, image_shape, classes: 10 })
    }

    fn refused(rows: &mut Rows, encoded: &[u8]) -> String {
        rows.push(encoded).unwrap_err().to_string()
    }

    #[test]
    fn pixels_become_planes() {
        let pixels = [1, 2, 3, 10, 20, 30];
        let mut all = rows(6, None);
        all.push(&png(2, 1, ExtendedColorType::Rgb8, &pixels)).unwrap();
        let with_alpha = [1, 2, 3, 0, 10, 20, 30, 9];
        all.push(&png(2, 1, ExtendedColorType::Rgba8, &with_alpha)).unwrap();
        all.push(&png(2, 1, ExtendedColorType::L8, &[7, 8])).unwrap();
        all.push(&png(2, 1, ExtendedColorType::La8, &[7, 0, 8, 0])).unwrap();
        let (shape, planes) = all.finish();
        assert_eq!(shape, Some([3, 1, 2]));
        assert_eq!(planes[..6], [1, 10, 2, 20, 3, 30]);
        assert_eq!(planes[6..12], planes[..6]);
        assert_eq!(planes[12..18], [7, 8, 7, 8, 7, 8]);
        assert_eq!(planes[18..], planes[12..18]);
    }

    /// Expected values: `Image.new("RGB", (1, 1), pixel).convert("L")` of Pillow 13.0.
    #[test]
    fn colours_become_the_grey_of_pillow() {
        let pixels = [255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255, 10, 200, 90, 1, 1, 2];
        let mut all = rows(6, Some([1, 2, 3]));
        all.push(&png(3, 2, ExtendedColorType::Rgb8, &pixels)).unwrap();
        assert_eq!(all.finish().1, [76, 150, 29, 255, 131, 1]);
    }

    #[test]
    fn the_first_image_decides_the_shape_of_a_student_that_takes_any() {
        let mut all = rows(6, None);
        let error = refused(&mut all, &grey_png(5, 1, 0));
        assert_eq!(error, "image shape is 1 x 1 x 5, expected 6 values, the student's input_size");
        all.push(&grey_png(3, 2, 0)).unwrap();
        let error = refused(&mut all, &grey_png(2, 3, 0));
        assert_eq!(error, "height x width is 3 x 2, expected 2 x 3, as the first image");
        let mut all = rows(6, Some([1, 2, 3]));
        let error = refused(&mut all, &grey_png(2, 3, 0));
        assert_eq!(error, "height x width is 3 x 2, expected 2 x 3, the student's image size");
        assert!(all.finish().1.is_empty());
    }

    #[test]
    fn what_is_no_image_of_bytes_is_an_error() {
        let mut all = rows(6, None);
        assert!(refused(&mut all, b"").contains("image is of no known format, expected a whole"));
        assert!(refused(&mut all, b"GIF89a\0\0\0\0").contains("image is Gif, expected"));
        let deep = png(3, 2, ExtendedColorType::L16, &[0; 12]);
        let error = refused(&mut all, &deep);
        assert_eq!(error, "bits per channel is 16, expected 8 or less");
    }

    #[test]
    fn any_cut_is_an_error_and_no_byte_makes_it_panic() {
        let whole = grey_png(6, 4, 3);
        for length in 0..whole.len() - 12 {
            assert!(rows(24, None).push(&whole[..length]).is_err(), "cut to {length} bytes");
        }
        for at in 0..whole.len() {
            for flip in [1, 0x80, 0xff] {
                let mut broken = whole.clone();
                broken[at] ^= flip;
                let mut all = rows(24, None);
                let taken = all.push(&broken).is_ok();
                assert_eq!(all.planes.len(), if taken { 24 } else { 0 }, "byte {at}");
            }
        }
    }

    fn jpeg(width: u32, height: u32) -> Vec<u8> {
        let mut file = Vec::new();
        let pixels: Vec<u8> = (0..width * height).map(|at| (at * at % 251) as u8).collect();
        let encoder = image::codecs::jpeg::JpegEncoder::new(&mut file);
        encoder.write_image(&pixels, width, height, ExtendedColorType::L8).unwrap();
        file
    }

    #[test]
    fn a_jpeg_is_whole_or_refused() {
        let whole = jpeg(24, 16);
        let push = |encoded: &[u8]| {
            let mut all = rows(24 * 16, None);
            all.push(encoded).map(|()| all.planes.len()).map_err(|fault| fault.to_string())
        };
        assert_eq!(push(&whole), Ok(24 * 16));
        // What some programs leave behind the end.
        assert_eq!(push(&[&whole[..], &[0; 9]].concat()), Ok(24 * 16));
        for length in 4..whole.len() {
            let error = push(&whole[..length]).unwrap_err();
            assert!(error.starts_with("image is "), "cut to {length} bytes: {error}");
        }
        // A thumbnail's own end, in a segment of metadata, is not the image's.
        let thumbnail = [0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9];
        let with_it = [&whole[..2], &thumbnail, &whole[2..]].concat();
        assert_eq!(push(&with_it), Ok(24 * 16));
        let error = push(&with_it[..with_it.len() - 2]).unwrap_err();
        assert_eq!(error, format!("image is a JPEG that is cut, expected {FORMATS}"));
    }

    /// 60,000 x 60,000 pixels in a header, a few bytes behind it.
    #[test]
    fn a_size_that_is_claimed_is_refused_before_anything_is_decoded() {
        let mut bomb = grey_png(6, 4, 3);
        bomb[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
        let crc = crc32(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&crc.to_be_bytes());
        let error = refused(&mut rows(24, None), &bomb);
        assert!(error.starts_with("image shape is 1 x 60000 x 60000, expected 24"), "{error}");
    }

    /// The checksum of a PNG chunk, bit by bit (RFC 2083, section 3.4).
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
            })
        })
    }
}
