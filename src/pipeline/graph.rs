//! Order of stages. Works on indices; knows nothing of what a stage is.

/// An order in which every node comes after those it needs; among free nodes the given order stays.
///
/// # Errors
/// The cycles, each as the nodes along it (`a` needs `b` needs … needs `a`), no node in two of them.
pub fn order(needs: &[Vec<usize>]) -> Result<Vec<usize>, Vec<Vec<usize>>> {
    let mut placed = vec![false; needs.len()];
    let mut done = Vec::new();
    let mut cycles = Vec::new();
    while done.len() < needs.len() {
        let free = (0..needs.len()).find(|&i| !placed[i] && needs[i].iter().all(|&n| placed[n]));
        let next = match free {
            Some(i) => vec![i],
            None => {
                let cycle = cycle(needs, &placed);
                cycles.push(cycle.clone());
                cycle
            }
        };
        for i in next {
            placed[i] = true;
            done.push(i);
        }
    }
    if cycles.is_empty() { Ok(done) } else { Err(cycles) }
}

/// One cycle among the nodes that are not placed: each of them needs another such node, so a walk must come back.
fn cycle(needs: &[Vec<usize>], placed: &[bool]) -> Vec<usize> {
    let first = placed.iter().position(|done| !done).expect("there is a node left");
    let mut walk = vec![first];
    loop {
        let last = *walk.last().expect("the walk has a start");
        let next =
            *needs[last].iter().find(|&&n| !placed[n]).expect("a node that is not free needs one that is not placed");
        if let Some(start) = walk.iter().position(|&i| i == next) {
            return walk.split_off(start);
        }
        walk.push(next);
    }
}

/// Marks `from` and every node that needs one of them, directly or not.
pub fn downstream(needs: &[Vec<usize>], from: &[usize]) -> Vec<bool> {
    let mut marked = vec![false; needs.len()];
    from.iter().for_each(|&i| marked[i] = true);
    loop {
        let more: Vec<usize> =
            (0..needs.len()).filter(|&i| !marked[i] && needs[i].iter().any(|&n| marked[n])).collect();
        if more.is_empty() {
            return marked;
        }
        more.into_iter().for_each(|i| marked[i] = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_nodes_come_first_and_file_order_stays() {
        assert_eq!(order(&[vec![], vec![3], vec![], vec![0]]), Ok(vec![0, 2, 3, 1]));
        assert_eq!(order(&[]), Ok(vec![]));
    }

    #[test]
    fn each_cycle_is_named_once() {
        // 0 → 1 → 2 → 0, 3 needs the cycle, 4 needs itself.
        let needs = [vec![1], vec![2], vec![0], vec![0], vec![4]];
        assert_eq!(order(&needs), Err(vec![vec![0, 1, 2], vec![4]]));
    }

    #[test]
    fn what_depends_is_marked() {
        assert_eq!(downstream(&[vec![], vec![0], vec![], vec![1, 2]], &[0]), [true, true, false, true]);
    }
}
