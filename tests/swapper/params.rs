//! Single precision to half, bit for bit.

use swapfs::deepspeed::swapper::{Dtype, PartitionId};
use swapfs::deepspeed::{SwapError, Swapper, SwapperOptions};

use super::support::{BLOCK, Random, options, place, seed};

/// The value of a number with `exponent_bits` and `mantissa_bits`, from its bits. `None` for NaN.
fn value(bits: u16, exponent_bits: i32, mantissa_bits: i32) -> Option<f64> {
    let mantissa = f64::from(bits & ((1 << mantissa_bits) - 1));
    let exponent = i32::from(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    let bias = (1 << (exponent_bits - 1)) - 1;
    let scale = 2_f64.powi(mantissa_bits);
    let magnitude = match exponent {
        0 => mantissa / scale * 2_f64.powi(1 - bias),
        e if e == (1 << exponent_bits) - 1 => {
            if mantissa > 0.0 {
                return None;
            }
            f64::INFINITY
        }
        e => (1.0 + mantissa / scale) * 2_f64.powi(e - bias),
    };
    Some(if bits >> 15 == 1 { -magnitude } else { magnitude })
}

/// The nearest such number, ties to even, reckoned in double precision.
fn nearest(x: f32, exponent_bits: i32, mantissa_bits: i32) -> f64 {
    let bias = (1 << (exponent_bits - 1)) - 1;
    let x = f64::from(x);
    if x == 0.0 || x.is_infinite() {
        return x;
    }
    let exponent = ((x.abs().to_bits() >> 52) as i32 - 1023).max(1 - bias);
    let step = 2_f64.powi(exponent - mantissa_bits);
    let rounded = (x / step).round_ties_even() * step;
    let end = 2_f64.powi(bias + 1);
    if rounded.abs() >= end { f64::INFINITY.copysign(x) } else { rounded }
}

fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut numbers = vec![
        0.0,
        -0.0,
        1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN_POSITIVE,
        1e-45,
        65504.0,
        65519.996,
        65520.0,
        -65520.0,
        5.960_464_5e-8,
        2.980_232_2e-8,
        2.980_232_6e-8,
        6.097_555e-5,
        3.389_531_4e38,
        3.396_175_4e38,
    ];
    // Halfway between neighbours of either kind.
    for bits in (0x3C00_u32..0x3C40).chain(0x0001..0x0040) {
        numbers.push(f32::from_bits((bits << 13) + (112 << 23) + 0x1000));
        numbers.push(f32::from_bits((bits << 16) + 0x8000));
    }
    let mut random = Random(seed);
    while numbers.len() < count {
        let bits = random.next();
        numbers.push(f32::from_bits(bits as u32));
        // Where half precision has values.
        numbers.push(((bits >> 32) as f32 / 2_f32.powi(32) - 0.5) * 2_f32.powi(bits as i32 % 20));
    }
    numbers.truncate(count);
    numbers
}

#[test]
fn half_and_bfloat_are_exact() {
    let seed = seed();
    println!("SWAPFS_SEED={seed}");
    for (dtype, exponent_bits, mantissa_bits) in [(Dtype::Float16, 5, 10), (Dtype::BFloat16, 8, 7)]
    {
        let place = place();
        let swapper = Swapper::new(&SwapperOptions { dtype, ..options(&place) }).unwrap();
        let source = numbers(seed, 300_001);
        assert_eq!(swapper.swap_out_partitioned_params(&[1], &[&source[..]]).unwrap(), 1);
        let file = std::fs::read(swapper.path(1)).unwrap();
        assert_eq!(file.len(), (300_001_usize * 2).next_multiple_of(1024));
        for (x, bytes) in source.iter().zip(file.chunks_exact(2)) {
            let bits = u16::from_ne_bytes([bytes[0], bytes[1]]);
            match value(bits, exponent_bits, mantissa_bits) {
                None => assert!(x.is_nan(), "{x} became NaN"),
                Some(found) => {
                    let expected = nearest(*x, exponent_bits, mantissa_bits);
                    let same = found.to_bits() == expected.to_bits();
                    assert!(same, "{dtype} of {x:e} ({:#x}): {found:e}", x.to_bits());
                }
            }
        }
        assert!(file[300_001 * 2..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_sub_group_goes_through_the_space_that_was_reserved() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let numels = [BLOCK / 2 * 7 + 3, 100, BLOCK];
    // Nine and a bit blocks, and at most half of sixteen.
    assert_eq!(swapper.reserve_partitioned_swap_space(&numels).unwrap(), 8 * BLOCK);
    assert_eq!(swapper.available_swap_in_buffers(), 8);
    assert_eq!(swapper.reserve_partitioned_swap_space(&[BLOCK]).unwrap(), 2 * BLOCK);
    assert_eq!(swapper.available_swap_in_buffers(), 14);
    let sources: Vec<Vec<f32>> = numels
        .iter()
        .map(|numel| (0..*numel).map(|at| ((at * 7) % 2048) as f32 - 1000.0).collect())
        .collect();
    let slices: Vec<&[f32]> = sources.iter().map(Vec::as_slice).collect();
    let ids = [1_u64, 2, 3];
    for _ in 0..2 {
        assert_eq!(swapper.swap_out_partitioned_params(&ids, &slices).unwrap(), 3);
        assert_eq!(swapper.available_swap_in_buffers(), 14);
    }
    swapper.release_partitioned_swap_space();
    assert_eq!(swapper.available_swap_in_buffers(), 16);
    for (id, source) in ids.iter().zip(&sources) {
        swapper.swap_in(&[*id], false, None).unwrap();
        let view = swapper.view(*id).unwrap();
        let found = view.elements::<half::f16>().unwrap().concat();
        assert!(found.iter().map(|element| element.to_f32()).eq(source.iter().copied()));
    }
    let error = swapper.swap_out_partitioned_params(&ids, &slices).unwrap_err();
    assert!(matches!(error, SwapError::Status { .. }), "{error:?}");
    let error = swapper.swap_out_partitioned_params(&ids, &slices[1..]).unwrap_err();
    assert!(matches!(error, SwapError::Count { partitions: 3, buffers: 2, .. }), "{error:?}");
    let error = swapper.swap_out_partitioned_params(&[1], &slices[1..2]).unwrap_err();
    assert!(matches!(error, SwapError::Numel { .. }), "{error:?}");
    let error = swapper.reserve_partitioned_swap_space(&numels).unwrap_err();
    assert!(matches!(error, SwapError::NoBuffers { .. }), "{error:?}");
}

#[test]
fn master_copies_stay_single_precision() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let source: Vec<f32> = numbers(4, 5000);
    let id = PartitionId::SubGroup("0_3".to_owned());
    swapper.swap_out_partitioned_params(std::slice::from_ref(&id), &[&source[..]]).unwrap();
    let file = std::fs::read(swapper.path(id)).unwrap();
    let expected = source.iter().flat_map(|x| x.to_ne_bytes());
    assert!(file.iter().copied().take(20_000).eq(expected));
}
