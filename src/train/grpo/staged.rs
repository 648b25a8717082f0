//! The forward passes of an update as tensors on the device. Everything of a set of completions goes over at once, before the first
//! pass, so that no pass waits for the host. Knows the layout of passes; nothing of losses.

use super::batch::{Example, Micro};
use crate::{
    models::{
        decoder::{Decoder, Mixer, RopeTables},
        packed::{Packed, Padded, Places},
        route,
    },
    train::transfer::{upload, upload_floats},
};
use tch::{Device, Kind, Tensor};

/// One pass.
pub(super) struct Staged<'a> {
    micro: &'a Micro,
    /// [rows] i64: ids that are fed in.
    pub(super) inputs: Tensor,
    /// [N] i64: the rows that predict a token.
    pub(super) positions: Tensor,
    /// [N] i64: the tokens that they predict.
    pub(super) targets: Tensor,
    /// [N] f32: the advantage of each token's completion.
    pub(super) advantages: Tensor,
    /// [N] f32: its normaliser.
    pub(super) weights: Tensor,
    /// How its attention is laid out on a GPU.
    padded: Option<Layout>,
}

struct Layout {
    shapes: Vec<[i64; 2]>,
    rows: Tensor,
    places: Tensor,
    positions: Tensor,
}

/// All passes of an update; `weights` holds each example's normaliser.
pub(super) fn stage<'a>(micros: &'a [Micro], examples: &[Example], weights: &[f64], device: Device) -> Vec<Staged<'a>> {
    let places: Vec<Option<Places>> =
        micros.iter().map(|micro| route::gpu(device).then(|| Places::new(&micro.trees))).collect();
    let mut integers: Vec<&[i64]> = Vec::new();
    let mut floats = Vec::new();
    for (micro, places) in micros.iter().zip(&places) {
        integers.extend([micro.inputs.as_slice(), &micro.positions, &micro.targets]);
        if let Some(Places { rows, places, positions, .. }) = places {
            integers.extend([rows.as_slice(), places, positions]);
        }
        let spread = |value: &dyn Fn(usize) -> f64| -> Vec<f32> {
            micro.examples.iter().flat_map(|&(i, n)| std::iter::repeat_n(value(i) as f32, n)).collect()
        };
        floats.extend([spread(&|i| examples[i].advantage), spread(&|i| weights[i])]);
    }
    let mut integers = upload(&integers, device).into_iter();
    let mut floats = upload_floats(&floats, device).into_iter();
    let mut integer = || integers.next().expect("as many tensors as lists went over");
    let mut float = || floats.next().expect("as many tensors as lists went over");
    let staged = micros.iter().zip(places).map(|(micro, places)| Staged {
        micro,
        inputs: integer(),
        positions: integer(),
        targets: integer(),
        padded: places.map(|places| Layout {
            shapes: places.shapes,
            rows: integer(),
            places: integer(),
            positions: integer(),
        }),
        advantages: float(),
        weights: float(),
    });
    staged.collect()
}

/// Rotary tables that reach over the longest sequence of the passes.
pub(super) fn rope(decoder: &Decoder, micros: &[Micro], device: Device, kind: Kind) -> RopeTables {
    let of_tree = |tree: &crate::models::packed::Tree| tree.prompt + tree.branches.iter().max().copied().unwrap_or(0);
    let longest = micros.iter().flat_map(|micro| &micro.trees).map(of_tree).max().unwrap_or(1);
    decoder.rope(longest as i64, device, kind)
}

impl Staged<'_> {
    /// The pass's attention for a model of that shape; `rope` as [`rope`] makes it.
    pub(super) fn mixer(&self, decoder: &Decoder, rope: &RopeTables, kind: Kind) -> Box<dyn Mixer> {
        match &self.padded {
            Some(Layout { shapes, rows, places, positions }) => Box::new(Padded {
                shapes: shapes.clone(),
                rows: rows.shallow_clone(),
                places: places.shallow_clone(),
                table: rope.at(positions),
            }),
            None => Box::new(Packed::new(&decoder.config, &self.micro.trees, self.inputs.device(), kind)),
        }
    }
}
