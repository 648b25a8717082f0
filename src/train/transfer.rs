//! Between the host and a device: a step's numbers go over in one piece and come back in one, since each transfer waits for all
//! that the device still has to do. Knows nothing of what the numbers mean.

use tch::{Device, Kind, Tensor};

/// Lists of integers as tensors on `device`, in one transfer.
pub fn upload(lists: &[&[i64]], device: Device) -> Vec<Tensor> {
    let sizes: Vec<i64> = lists.iter().map(|list| list.len() as i64).collect();
    Tensor::from_slice(&lists.concat()).to_device(device).split_with_sizes(sizes.as_slice(), 0)
}

/// The same for floats.
pub fn upload_floats(lists: &[Vec<f32>], device: Device) -> Vec<Tensor> {
    let sizes: Vec<i64> = lists.iter().map(|list| list.len() as i64).collect();
    Tensor::from_slice(&lists.concat()).to_device(device).split_with_sizes(sizes.as_slice(), 0)
}

/// All elements of all tensors, one behind the other, in one transfer. Integers up to 2⁵³ come back exactly.
pub fn download(tensors: &[&Tensor]) -> Vec<f64> {
    let flat: Vec<Tensor> = tensors.iter().map(|t| t.detach().to_kind(Kind::Double).reshape([-1])).collect();
    if flat.is_empty() {
        return Vec::new();
    }
    let all = Tensor::cat(&flat, 0).to_device(Device::Cpu);
    let mut values = vec![0.0; all.numel()];
    all.copy_data(&mut values, all.numel());
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let parts = upload(&[&[1, 2], &[], &[3]], Device::Cpu);
        let sizes: Vec<i64> = parts.iter().map(|t| t.size()[0]).collect();
        assert_eq!(sizes, [2, 0, 1]);
        let floats = upload_floats(&[vec![0.5], vec![-1.0, 2.0]], Device::Cpu);
        let back = download(&[&parts[0], &floats[1], &parts[2].sum(Kind::Int64)]);
        assert_eq!(back, [1.0, 2.0, -1.0, 2.0, 3.0]);
        assert!(download(&[]).is_empty());
    }
}
