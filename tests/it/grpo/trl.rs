//! Losses, gradients and five updates of TRL's GRPOTrainer (tests/golden/grpo.py), from the same completions and rewards.

use crate::device::tensor_device;
use repro::{
    models::{decoder::Decoder, route::AsOnGpu},
    train::{
        grpo::{
            advantage::{ScaleRewards, advantages},
            batch::Example,
            loss::Objective,
            policy::{Activations, Policy, UpdateOptions},
        },
        optim::AdamWOptions,
    },
};
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf};
use tch::{Device, Kind, Tensor};

const END: u32 = 1;

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn cases() -> BTreeMap<String, Value> {
    serde_json::from_slice(&std::fs::read(golden().join("grpo/cases.json")).unwrap()).unwrap()
}

fn tensors(case: &str) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(golden().join(format!("grpo/{case}.safetensors"))).unwrap().into_iter().collect()
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn options(settings: &Value, rows: usize, activations: Activations) -> UpdateOptions {
    let number = |name: &str| settings[name].as_f64().unwrap();
    UpdateOptions {
        objective: Objective {
            epsilon: number("epsilon"),
            epsilon_high: number("epsilon_high"),
            beta: number("beta"),
            temperature: number("temperature"),
        },
        loss_type: read(&settings["loss_type"]),
        batches: 2,
        longest: settings["longest"].as_u64().unwrap() as usize,
        iterations: settings["num_iterations"].as_u64().unwrap() as usize,
        rows,
        activations,
        clip: number("clip"),
        between: None,
    }
}

/// The completions of one of TRL's steps, with advantages that are our own.
fn examples(case: &Value, step: &Value) -> (Vec<Vec<u32>>, Vec<Example>) {
    let rollout = &case["rollouts"][step["rollout"].as_u64().unwrap() as usize];
    let settings = &case["settings"];
    let samples = settings["samples"].as_u64().unwrap() as usize;
    let rewards: Vec<f64> = read(&rollout["rewards"]);
    let rewards: Vec<Option<f64>> = rewards.into_iter().map(Some).collect();
    let scale: ScaleRewards = read(&settings["scale_rewards"]);
    let (ours, _) = advantages(&rewards, samples, scale);
    let completions: Vec<Vec<u32>> = read(&rollout["completions"]);
    let batches: Vec<usize> = read(&step["batches"]);
    let theirs: Vec<Option<f64>> = read(&step["advantages"]);
    let mask = settings["mask_truncated_completions"].as_bool().unwrap();
    let examples = completions.into_iter().enumerate().map(|(i, tokens)| {
        let advantage = ours[i].unwrap();
        if let Some(theirs) = theirs[i] {
            assert!((advantage - theirs).abs() < 1e-4, "advantage {advantage} is not {theirs}");
        }
        let masked = mask && tokens.last() != Some(&END);
        Example { prompt: i / samples, tokens, advantage, batch: batches[i], drawn: None, masked }
    });
    (read(&rollout["prompts"]), examples.collect())
}

fn policy(settings: &Value) -> Policy {
    tch::set_num_threads(1);
    let decoder = Decoder::from_dir(&golden().join("decoders/qwen3"), tensor_device(), Kind::Float).unwrap();
    let adamw = AdamWOptions { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    Policy::new(decoder, adamw, Kind::Float, settings["beta"].as_f64().unwrap() != 0.0)
}

fn slices(prompts: &[Vec<u32>]) -> Vec<&[u32]> {
    prompts.iter().map(Vec::as_slice).collect()
}

fn norm(tensor: &Tensor) -> f64 {
    tensor.norm().double_value(&[])
}

#[test]
fn losses_and_gradients_are_those_of_trl() {
    losses_and_gradients();
}

/// What CUDA uses, covered where there is none.
#[test]
fn the_way_of_a_gpu_gives_the_losses_and_gradients_of_trl() {
    let _gpu = AsOnGpu::begin();
    losses_and_gradients();
}

/// Every loss type, on policy and off, whatever the cut into passes and with activations kept or not.
fn losses_and_gradients() {
    for (name, case) in cases() {
        let golden = tensors(&name);
        let step = &case["steps"][0];
        let (prompts, examples) = examples(&case, step);
        for (rows, activations) in [(10_000, Activations::Keep), (30, Activations::Recompute), (1, Activations::Keep)] {
            let mut policy = policy(&case["settings"]);
            let options = options(&case["settings"], rows, activations);
            let (loss, grad) = policy.loss_and_gradient(&slices(&prompts), &examples, &options);
            let grad = grad.to_device(Device::Cpu);
            let wanted = step["loss"].as_f64().unwrap();
            assert!((loss - wanted).abs() < 1e-4 * wanted.abs().max(0.1), "{name}: loss {loss} is not {wanted}");
            for slot in policy.parameters.slots() {
                let theirs = &golden[&format!("grad.{}", slot.name)];
                let ours = policy.parameters.part(&grad, &slot.name).unwrap();
                let off = norm(&(ours - theirs)) / norm(theirs);
                assert!(off < 1e-4, "{name}, {rows} rows: gradient of {} is off by {off:.1e}", slot.name);
            }
        }
    }
}

#[test]
fn weights_after_five_updates_are_those_of_trl() {
    five_updates();
}

#[test]
fn the_way_of_a_gpu_gives_the_weights_of_trl() {
    let _gpu = AsOnGpu::begin();
    five_updates();
}

fn five_updates() {
    for (name, case) in cases() {
        let golden = tensors(&name);
        if !golden.keys().any(|key| key.starts_with("after.")) {
            continue;
        }
        let mut policy = policy(&case["settings"]);
        let before = policy.parameters.weights(Kind::Float);
        let before: BTreeMap<String, Tensor> =
            before.tensors.into_iter().map(|(n, t)| (n, t.copy().to_device(Device::Cpu))).collect();
        let options = options(&case["settings"], 40, Activations::Keep);
        let rate = case["settings"]["learning_rate"].as_f64().unwrap();
        let steps = case["steps"].as_array().unwrap();
        for step in steps.iter().step_by(options.iterations) {
            // Loss batches are drawn once for a set of completions, in TRL as here.
            let (prompts, examples) = examples(&case, step);
            let report = policy.update(&slices(&prompts), &examples, &options, rate).unwrap();
            let wanted = step["loss"].as_f64().unwrap();
            assert!((report.loss - wanted).abs() < 1e-4, "{name}: loss {} is not {wanted}", report.loss);
        }
        let after = policy.parameters.weights(Kind::Float);
        for (parameter, ours) in &after.tensors {
            let theirs = &golden[&format!("after.{parameter}")];
            let ours = &ours.to_device(Device::Cpu);
            let off = (ours - theirs).abs().max().double_value(&[]);
            let moved = norm(&(theirs - &before[parameter]));
            assert!(off < 1e-4, "{name}: {parameter} is off by {off:.1e}");
            assert!(norm(&(ours - theirs)) < 0.01 * moved, "{name}: {parameter} is off by a part of its change");
        }
    }
}
